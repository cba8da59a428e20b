"""Checkpoints in the layouts of others: UNITER and TAGS, BERT, and the repositories of VSRN, SCAN and BFAN.

    files.py      read and write their files, without running what is in them
    uniter.py     UNITER, TAGS and BERT <-> UniterModel
    matchers.py   the matchers <-> the files of their authors' code
    words.py      the matchers' word vocabularies as tokenizers
"""
