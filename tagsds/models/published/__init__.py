"""Checkpoints in the layouts of others: UNITER and TAGS, BERT, and the repositories of VSRN, SCAN and BFAN.

    files.py      read and write their files, without running what is in them
    layout.py     one key there, one parameter here: what both sides of a layout are made of
    uniter.py     UNITER, TAGS and BERT <-> UniterModel
    matchers.py   VSRN, SCAN, BFAN <-> the matchers
    words.py      the matchers' word vocabularies as tokenizers
"""
