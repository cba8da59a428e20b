"""Corpora, their caches, tokenizers and candidates: valid folders, and how the commands read them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from preprocess.verify import verify_corpus
from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import load_tokenizer
from tagsds.data.wordpiece import wordpiece_tokenizer
from tagsds.evaluators.edits import Edits, EditsSettings
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.evaluators.protocol import Plan
from tagsds.files import sha256_of
from tagsds.formats.candidates import Candidates
from tagsds.formats.manifest import files_of_tokenizer, read_manifest
from tagsds.models import UniterModel
from tests import tiny_corpus as tiny
from tests.candidates import candidates_of, write_candidates
from tests.data.corpus import write_corpus


def make_corpus(folder: Path) -> None:
    """Five images with boxes and soft labels in two shards, edits, and the checksums of the tokenizer."""
    write_corpus(folder, {"train": 5}, per_shard=3, classes=3)
    path = folder / "edits" / "train" / "colour.json"
    pair = {"caption": "a red dog", "negative_caption": "a blue dog"}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({str(n): {"filename": f"train-{n:07d}.jpg", **pair} for n in range(5)}))
    edit_manifest(folder, tokenizer_files=files_of_tokenizer(folder / "tokenizer"),
                  edits={"train": {"colour": {"pairs": 5, "sha256": sha256_of(path)}}})  # fmt: skip


def make_imported(folder: Path) -> None:
    """Captions that came as ids, with spans over them."""
    from tests.data.test_shards import rewrite

    write_corpus(folder, {"train": 3}, per_shard=3)

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("captions.json"):
            return data
        captions = json.loads(data)
        for caption in captions:
            caption["ids"] = list(range(5, 5 + len(caption["text"].split())))
            caption["spans"] = [{"kind": "object", "pieces": [0]}]
        return json.dumps(captions).encode()

    rewrite(folder, change, split="train")
    edit_manifest(folder, imported_ids=True)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reseal_corpus(folder: Path, name: str) -> None:
    """The manifest's sizes and checksums as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in manifest["splits"].values():
        for shard in part["shards"]:
            path = folder / shard["file"]
            if path.is_file():
                shard["bytes"], shard["sha256"] = path.stat().st_size, sha256_of(path)
    manifest["tokenizer_files"] = files_of_tokenizer(folder / "tokenizer")
    for split, kinds in manifest.get("edits", {}).items():
        for kind, entry in kinds.items():
            path = folder / "edits" / split / f"{kind}.json"
            entry["sha256"] = sha256_of(path) if path.is_file() else entry["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_corpus(folder: Path) -> Any:
    bank, manifest = load_bank(folder, "train", cache="none")
    check_bank(bank, manifest.vocab_size)
    return bank_values(bank)


def load_cached(folder: Path) -> Any:
    bank, manifest = load_bank(folder, "train", cache=str(folder / "cache"))
    check_bank(bank, manifest.vocab_size)
    return bank_values(bank)


def make_cached(folder: Path) -> None:
    make_corpus(folder)
    load_cached(folder)


def bank_values(bank: Bank) -> dict[str, Any]:
    ragged = {name: getattr(bank, name) for name in ("tokens", "spans", "regions", "captions_of_image")}
    values = {name: (rows.values, rows.lengths) for name, rows in ragged.items()}
    strings = {name: list(getattr(bank, name)) for name in ("texts", "keys", "caption_ids")}
    return values | strings | {"boxes": bank.boxes, "classes": bank.classes, "owner": bank.image_of_caption}


def check_bank(bank: Bank, vocab_size: int) -> None:
    """What everything behind the loader relies on."""
    tokens, spans, regions = bank.tokens, bank.spans, bank.regions
    assert 0 <= int(tokens.values.min()) and int(tokens.values.max()) < vocab_size and int(tokens.lengths.min()) >= 2
    for rows in (tokens, spans, regions, bank.captions_of_image):
        assert int(rows.lengths.min()) >= 0 and int(rows.lengths.sum()) == len(rows.values)
    longest = torch.repeat_interleave(tokens.lengths, spans.lengths)
    assert bool(((spans.values[:, 1] > 0) & (spans.values[:, 1] < longest)).all())
    assert regions.values.dtype == torch.float16 and bool(regions.values.isfinite().all()) and int(regions.lengths.min()) >= 1
    assert -1e-3 <= float(bank.boxes.min()) and float(bank.boxes.max()) <= 1.001 and len(bank.boxes) == len(regions.values)
    assert len(set(bank.keys)) == len(bank.keys) == bank.num_images and len(bank.texts) == bank.num_captions == len(tokens)
    if bank.classes is not None:
        assert len(bank.classes) == len(regions.values) and bool(((bank.classes.float().sum(1) - 1).abs() < 0.03).all())


def load_manifest(folder: Path) -> Any:
    """The manifest, then the shards by it: its counts must not lead anywhere but to a sentence."""
    manifest = read_manifest(folder)
    for split in list(manifest.splits):
        manifest.shards(split)
        manifest.caption_pieces(split)
    bank, _ = load_bank(folder, "train", cache="none")
    check_bank(bank, manifest.vocab_size)
    return asdict(manifest) | bank_values(bank)


def load_verified(folder: Path) -> Any:
    return verify_corpus(folder)


def make_tokenizer(folder: Path) -> None:
    tiny.tokenizer().save_pretrained(folder)


def use_tokenizer(tokenizer: Any) -> Any:
    encoded = tokenizer(["a red dog near the café", ""], return_offsets_mapping=True)
    size, ids = len(tokenizer), encoded["input_ids"]
    assert all(0 <= number < size for row in ids for number in row)
    return size, ids, encoded["offset_mapping"]


def load_a_tokenizer(folder: Path) -> Any:
    return use_tokenizer(load_tokenizer(folder))


def make_vocabulary(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(tiny.WORDS) + "\n")


def load_vocabulary(folder: Path) -> Any:
    return use_tokenizer(wordpiece_tokenizer(str(folder / "vocab.txt")))


def make_candidates(folder: Path) -> None:
    write_corpus(folder / "data", {"train": 4})
    bank, _ = load_bank(folder / "data", "train", cache="none")
    (folder / "mined").mkdir()
    write_candidates(folder / "mined", folder / "data", "train", candidates_of(bank, 6, 3))


def load_candidates(folder: Path) -> Any:
    found = Candidates.read(folder / "mined", read_manifest(folder / "data"), "train")
    for table, count in ((found.captions_of_image, 20), (found.images_of_caption, 4)):
        assert table.dtype == torch.int32 and -1 <= int(table.min()) and int(table.max()) < count
    return found.captions_of_image, found.images_of_caption


def reseal_candidates(folder: Path, name: str) -> None:
    path = folder / "mined" / "candidates.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {n: sha256_of(path.parent / n) if (path.parent / n).is_file() else "" for n in manifest["sha256"]}
    path.write_text(json.dumps(manifest))


def load_edits(folder: Path) -> Any:
    """`--pairs` of tagsds-evaluate."""
    files = [folder / "edits" / "train"]
    Edits(EditsSettings(files=tuple(files))).check(Plan(read_manifest(folder), "train", UniterModel, None))
    return read_pairs(files, [f"train-{n:07d}" for n in range(5)], skip_missing=True)
