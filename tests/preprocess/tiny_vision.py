"""Tiny random vision models saved with their image processors, and pictures of several sizes and modes to run them on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers import PreTrainedModel

SIZES = {1: (60, 40), 2: (40, 60), 3: (50, 50), 4: (60, 40), 5: (61, 40), 6: (60, 40), 7: (40, 60)}  # width, height in pixels
LABELS = {0: "cat", 1: "dog", 2: "tennis racket"}
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def draw_pictures(folder: Path, sizes: dict[int, tuple[int, int]] = SIZES) -> None:
    """A file an image id: 2 is grayscale, 3 an RGBA PNG, the others JPEG in colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in sizes.items():
        random = np.random.default_rng(number)
        small = random.integers(0, 256, (4, 4, 4), dtype=np.uint8)
        picture = Image.fromarray(small, "RGBA").resize((width, height), Image.Resampling.BICUBIC)
        mode, suffix = {2: ("L", "jpg"), 3: ("RGBA", "png")}.get(number, ("RGB", "jpg"))
        picture.convert(mode).save(folder / f"{number:012d}.{suffix}")


def write_captions(folder: Path, split: dict[str, list[int]]) -> list[str]:
    """COCO captions and a split file; the arguments that name them."""
    numbers = [number for part in split.values() for number in part]
    suffix = {3: "png"}
    images = [{"id": n, "file_name": f"{n:012d}.{suffix.get(n, 'jpg')}"} for n in numbers]
    sentences = {n: [f"a red dog , image {n}", f"a big dog , image {n}"] for n in numbers}
    notes = [{"id": 10 * n + k, "image_id": n, "caption": text} for n in numbers for k, text in enumerate(sentences[n])]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    (folder / "split.json").write_text(json.dumps(split))
    return ["--captions", f"{folder}/captions.json", "--split", f"{folder}/split.json"]


def randomise(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Weights that make outputs differ from picture to picture and token to token."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 1.0 if "query" in name else 0.3 / parameter.shape[-1:].numel() ** 0.5  # queries shall not be near ties
            parameter += torch.randn(parameter.shape, generator=generator) * spread
    return model.eval()


def _vit() -> PreTrainedModel:
    return hf.ViTModel(hf.ViTConfig(**TRANSFORMER, intermediate_size=32, image_size=32, patch_size=8))


def _clip() -> PreTrainedModel:
    vision = {**TRANSFORMER, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
    text = {**TRANSFORMER, "intermediate_size": 32, "vocab_size": 40, "eos_token_id": 2, "bos_token_id": 1}
    return hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))


def _dinov2() -> PreTrainedModel:
    return hf.Dinov2Model(hf.Dinov2Config(**TRANSFORMER, mlp_ratio=2, image_size=56, patch_size=8))


def _registers() -> PreTrainedModel:
    config = hf.Dinov2WithRegistersConfig(**TRANSFORMER, mlp_ratio=2, image_size=56, patch_size=8, num_register_tokens=3)
    return hf.Dinov2WithRegistersModel(config)


def _detr() -> PreTrainedModel:
    backbone = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    config = hf.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=2, num_queries=15,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, id2label=LABELS,
    )  # fmt: skip
    return hf.DetrForObjectDetection(config)


def _deformable() -> PreTrainedModel:
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8], depths=[1, 1, 1], layer_type="basic", out_features=["stage2", "stage3"]
    )
    config = hf.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=15,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_feature_levels=2,
        id2label=LABELS,
    )  # fmt: skip
    return hf.DeformableDetrForObjectDetection(config)


def _conditional() -> PreTrainedModel:
    backbone = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    config = hf.ConditionalDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=2, num_queries=15,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, id2label=LABELS,
    )  # fmt: skip
    return hf.ConditionalDetrForObjectDetection(config)


def _rt_detr() -> PreTrainedModel:
    backbone = hf.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=15, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_attention_heads=2, decoder_layers=2, anchor_image_size=None, hidden_expansion=1.0, num_denoising=0, id2label=LABELS,
    )  # fmt: skip
    return hf.RTDetrForObjectDetection(config)


def _yolos() -> PreTrainedModel:
    config = hf.YolosConfig(
        **TRANSFORMER, intermediate_size=32, image_size=[48, 64], patch_size=16, num_detection_tokens=15, id2label=LABELS
    )
    return hf.YolosForObjectDetection(config)


MODELS = {
    "vit": _vit, "clip": _clip, "dinov2": _dinov2, "registers": _registers, "detr": _detr, "conditional": _conditional,
    "deformable": _deformable, "rt_detr": _rt_detr, "yolos": _yolos,
}  # fmt: skip
EDGES = {"size": {"shortest_edge": 48, "longest_edge": 70}}
PROCESSORS = {
    "vit": lambda: hf.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "clip": lambda: hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "dinov2": lambda: hf.BitImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}),
    "registers": lambda: hf.BitImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 40}),
    "detr": lambda: hf.DetrImageProcessorPil(**EDGES),
    "conditional": lambda: hf.ConditionalDetrImageProcessorPil(**EDGES),
    "deformable": lambda: hf.DeformableDetrImageProcessorPil(**EDGES),
    "rt_detr": lambda: hf.RTDetrImageProcessorPil(size={"height": 64, "width": 64}),
    "yolos": lambda: hf.YolosImageProcessorPil(**EDGES),
}


def save_model(folder: Path, name: str, **options: object) -> PreTrainedModel:
    """One of MODELS with random weights, saved with its image processor."""
    torch.manual_seed(0)
    model = randomise(MODELS[name]())
    model.save_pretrained(folder, **options)
    PROCESSORS[name]().save_pretrained(folder)
    return model


class TinyPictures:
    """A folder of pictures, its captions and models in `folder`; runs of tagsds-extract on them."""

    def __init__(self, folder: Path, split: dict[str, list[int]] | None = None) -> None:
        self.folder = folder
        self.split = {"train": [5, 1, 2, 3, 4], "test": [7, 6]} if split is None else split
        draw_pictures(folder / "pictures")
        self.named = write_captions(folder, self.split)

    def arguments(self, model: str | Path, *more: str, out: str = "out") -> list[str]:
        head = ["--pictures", f"{self.folder}/pictures", "--model", str(model), *self.named]
        return [*head, "--out", f"{self.folder}/{out}", "--spans", "rules", "--shard-size", "3", "--batch", "2", *more]

    def picture(self, number: int) -> Image.Image:
        """In RGB, opened without the extractor's code."""
        return Image.open(next((self.folder / "pictures").glob(f"{number:012d}.*"))).convert("RGB")


def copied(models: Path, name: str, folder: Path) -> Path:
    """A model that a test may change."""
    target = folder / "copy"
    target.mkdir()
    for path in (models / name).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
