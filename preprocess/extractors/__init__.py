"""Region features from pictures, by vision models of transformers.

    vision.py    loading a model folder, and which kind it is
    grid.py      patches of a ViT, CLIP or DINOv2 as regions
    detector.py  kept queries of a DETR-type detector as regions
    pictures.py  finding, opening and shrinking picture files
"""
