"""Exports, matchers and published checkpoints: valid folders, and how the commands read them."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from tagsds.files import sha256_of, write_checksums
from tagsds.formats.manifest import read_manifest
from tagsds.models.card import Card, record_recalls
from tagsds.models.convert import run as convert
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config
from tagsds.models.published.words import read_words
from tests import tiny_corpus as tiny
from tests.data.corpus import write_corpus
from tests.fuzz.digest import digest
from tests.models import published_matchers, published_uniter
from tests.models.matcher_world import matcher_of


def make_export(folder: Path) -> None:
    tiny.write_checkpoint(folder)
    Card(kind="tagsds_uniter", recipe={"recipe": "tags-base-coco"}, commit="abc", version="0").write(folder)
    write_checksums(folder)


def make_older_export(folder: Path) -> None:
    make_export(folder)
    (folder / "checksums.json").unlink()


def make_matcher(folder: Path) -> None:
    matcher_of("vsrn", vocab_size=len(tiny.WORDS), region_dim=8).float().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def load_export(folder: Path) -> Any:
    """As tagsds-evaluate does: config, corpus against it, weights; then one forward pass by what was loaded."""
    found, _ = find_checkpoint(folder)
    config = read_config(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder without a tokenizer
        check_data(config, found, corpus_of(folder))
    model = load_model(found)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    return {name: value for name, value in model.state_dict().items()} | {"config": model.config.to_dict()}


def corpus_of(folder: Path) -> Any:
    """The manifest of the corpus beside the case's folder, which is never damaged."""
    place = folder.parent / "corpus-of-models"
    if not place.is_dir():
        write_corpus(place, {"train": 2})
    return read_manifest(place)


def load_card(folder: Path) -> Any:
    recalls = {f"{side}_r{n}": 1.0 for side in ("text", "image") for n in (1, 5, 10)} | {"rsum": 6.0}
    return record_recalls(folder, "test", Path("data"), {"images": 5, "recalls": recalls}), (folder / "README.md").read_text()


def load_way_back(folder: Path) -> Any:
    """tagsds-convert, from a folder to a file."""
    out = folder.parent / "back.pt"
    out.unlink(missing_ok=True)
    convert([str(folder / "ours"), "--out", str(out)])
    return torch.load(out, weights_only=True)


def make_way_back(folder: Path) -> None:
    make_published(folder)
    convert([str(folder / "uniter.pt"), "--out", str(folder / "ours")])
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    (folder / "ours" / "checksums.json").unlink()


PUBLISHED = ("uniter.pt", "uniter.pth", "uniter.safetensors", "vsrn.pt", "scan.pth")


def make_published(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = published_uniter.state_dict(width=64, vocab=12, inner=16, region_dim=6)
    torch.save(state, folder / "uniter.pt")
    torch.save(state, folder / "uniter.pth", _use_new_zipfile_serialization=False)
    save_file({name: value.clone() for name, value in state.items()}, folder / "uniter.safetensors")
    torch.save(published_matchers.checkpoint("vsrn"), folder / "vsrn.pt")
    torch.save(published_matchers.checkpoint("scan"), folder / "scan.pth", _use_new_zipfile_serialization=False)


def load_published(folder: Path) -> Any:
    """tagsds-convert, from each file to a folder. A file with the bytes of an earlier case is not converted again."""
    beside = folder.parent / "converted.json"
    known = json.loads(beside.read_text()) if beside.is_file() else {}
    found = {}
    for name in PUBLISHED:
        path, out = folder / name, folder.parent / "converted"
        key = f"{name} {sha256_of(path)}" if path.is_file() else ""
        if key not in known:
            shutil.rmtree(out, ignore_errors=True)
            convert([str(path), "--out", str(out)])
            known[key] = digest(load_model(out).state_dict())
        found[name] = known[key]
    beside.write_text(json.dumps(known))
    return found


def make_words(folder: Path) -> None:
    from tests.models.test_published_words import Vocabulary  # type: ignore[attr-defined]

    folder.mkdir(parents=True)
    words = ["<pad>", "<start>", "<end>", "<unk>", *tiny.THINGS, *tiny.COLOURS]
    ids = {word: number for number, word in enumerate(words)}
    (folder / "words.json").write_text(json.dumps({"word2idx": ids, "idx": len(ids)}))
    held = Vocabulary.__new__(Vocabulary)
    held.word2idx, held.idx2word, held.idx = ids, {number: word for word, number in ids.items()}, len(ids)
    (folder / "words.pkl").write_bytes(pickle.dumps(held, protocol=2))


def load_words(folder: Path) -> Any:
    return read_words(folder / "words.json"), read_words(folder / "words.pkl")
