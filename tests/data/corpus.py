"""Corpora of any number of images, made by the shard writer in no time: for the tests of loading and for `bench/startup.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.records import Caption, ImageRecord, Span
from preprocess.shards import ShardWriter
from tagsds.files import sha256_of
from tagsds.ranks import World
from tests import tiny_corpus

CAPTIONS = 5


def caption(image: int, number: int, words: int) -> Caption:
    """A sentence of so many words (one of them of two bytes a letter) with two spans over it."""
    rng = np.random.default_rng([image, number])
    chosen = [tiny_corpus.WORDS[5:][i] for i in rng.integers(0, len(tiny_corpus.WORDS) - 5, words)]
    chosen[-1] = "café" if image % 3 == 0 else chosen[-1]
    text = " ".join(chosen)
    first, second = (0, len(chosen[0])), (text.index(" ") + 1, len(text))
    return Caption(f"{image}-{number}", text, (Span("object", (first,)), Span("relation", (second,))))


def write_corpus(
    folder: Path, splits: dict[str, int], per_shard: int = 4, width: int = 8, regions: int = 3, classes: int = 0,
    boxes: bool = True, seed: int = 0, words: int = 6,
) -> Path:  # fmt: skip
    """Shards, manifest and tokenizer; `splits` gives the images of each, `regions` the most regions of an image."""
    folder.mkdir(parents=True)
    tiny_corpus.tokenizer().save_pretrained(folder / "tokenizer")
    found: dict[str, dict] = {}
    most = 0
    for place, (split, images) in enumerate(splits.items()):
        rng = np.random.default_rng([seed, place])
        shards = []
        for number, first in enumerate(range(0, images, per_shard)):
            path = folder / f"{split}-{number:06d}.tar"
            count = min(per_shard, images - first)
            lengths = rng.integers(1, regions + 1, count)
            most = max(most, int(lengths.max()))
            with open(path, "wb") as stream, ShardWriter(stream) as writer:
                for image, n in zip(range(first, first + count), lengths, strict=True):
                    soft = rng.random((n, classes)) if classes else None
                    writer.write(
                        ImageRecord(
                            key=f"{split}-{image:07d}",
                            regions=rng.standard_normal((n, width), np.float32),
                            boxes=np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) if boxes else None,
                            captions=[caption(image, c, words) for c in range(CAPTIONS)],
                            classes=None if soft is None else soft / soft.sum(1, keepdims=True),
                        )
                    )
            line = {"file": path.name, "samples": count, "captions": CAPTIONS * count, "regions": int(lengths.sum())}
            shards.append(line | {"bytes": path.stat().st_size, "sha256": sha256_of(path)})
        sums = {name: sum(shard[name] for shard in shards) for name in ("samples", "captions", "regions")}
        found[split] = {"images": sums.pop("samples"), **sums, "shards": shards}
    manifest = {
        "format": "tagsds-shards", "version": 1, "feature_dim": width, "num_classes": classes, "class_names": [],
        "background_class": False, "boxes": boxes, "imported_ids": False, "max_regions": most, "max_caption_pieces": words + 2,
        "tokenizer": "tokenizer", "vocab_size": len(tiny_corpus.WORDS), "splits": found, "made_by": {"source": "tests"},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


class Alone(World):
    """One of several ranks, without the others: nothing is told between them."""

    def gather_objects(self, value: Any) -> list[Any]:
        return [value]
