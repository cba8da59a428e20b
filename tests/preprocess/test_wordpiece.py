"""The trained and the loaded tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertTokenizerFast

from preprocess.tokenizer import train_vocabulary
from tagsds.data.wordpiece import build_tokenizer, wordpiece_tokenizer
from tagsds.errors import UserError

TEXTS = ["low low low low low", "lower lower newest newest newest", "newest newest newest widest widest widest"]


def test_vocabulary_worked_by_hand() -> None:
    vocabulary = train_vocabulary(TEXTS, 5 + 13 + 3)
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = ["##d", "##e", "##i", "##o", "##r", "##s", "##t", "##w", "l", "n", "w"]
    assert vocabulary[5:16] == characters
    # (##e, ##s) and (##s, ##t) 9 times each: the first sorts first; then (##es, ##t) 9; then (##o, ##w), (l, ##o) 7
    assert vocabulary[16:19] == ["##es", "##est", "##ow"]


def test_no_larger_than_asked_and_whole_words_in_the_end() -> None:
    assert len(train_vocabulary(TEXTS, 20)) == 20
    assert {"low", "lower", "newest", "widest"} <= set(train_vocabulary(TEXTS, 1000))


def test_training_is_the_same_in_another_process() -> None:
    code = f"from preprocess.tokenizer import train_vocabulary; print(train_vocabulary({TEXTS!r}, 30))"
    root = Path(__file__).resolve().parents[2]
    environment = {"PYTHONHASHSEED": "1", "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == str(train_vocabulary(TEXTS, 30)), out.stderr


def test_it_tokenises_like_bert(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "bert_vocab" / "bert-base-uncased-vocab.txt"
    ours = wordpiece_tokenizer(str(path))
    theirs = BertTokenizerFast(vocab=str(path))
    for text in (
        "A tan toilet, and SINK-combination; na\u00efve skateboarders' caf\u00e9!",
        "unbelievably zzzqx \u4f60\u597d",
    ):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert (ours.pad_token_id, ours.cls_token_id, ours.mask_token_id) == (0, 101, 103)
    ours.save_pretrained(tmp_path)
    assert wordpiece_tokenizer(str(tmp_path))("a cat")["input_ids"] == ours("a cat")["input_ids"]


def test_offsets_point_into_the_text() -> None:
    tokenizer = build_tokenizer(train_vocabulary(TEXTS, 100))
    encoded = tokenizer("Lower  newest", return_offsets_mapping=True)
    assert encoded["offset_mapping"] == [(0, 0), (0, 5), (7, 13), (0, 0)]


def test_bad_names(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"vocab.txt is no BERT vocabulary: it lacks \[CLS\]"):
        wordpiece_tokenizer(str(tmp_path / "vocab.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a file nor a folder nor a known name"):
        wordpiece_tokenizer(str(tmp_path / "empty"))
