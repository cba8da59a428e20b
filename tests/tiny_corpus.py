"""A corpus of a few images and a model of a few weights, for the tests of evaluation and of the report."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tagsds.models import UniterConfig, UniterModel

SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
COLOURS = ["red", "green", "blue", "black", "white", "yellow"]
THINGS = ["dog", "cat", "ball", "boat", "house", "tree"]
WORDS = [*SPECIAL.values(), "a", "the", "big", "small", "near", "on", "one", *COLOURS, *THINGS]
WIDTH = 8  # of a region feature


def tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    ids = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def captions_of(image: int) -> list[str]:
    """Five captions, and a sixth for every second image.

    No two images share a caption: equal captions tie up to rounding, which depends on the chunks.
    """
    colour, thing = COLOURS[image % 6], THINGS[(image + image // 6) % 6]
    texts = [
        f"a {colour} {thing}",
        f"the {colour} {thing} near a tree",
        f"one big {colour} {thing} on the boat",
        f"a small {colour} {thing}",
        f"the {colour} {thing} near the big house",
        f"a ball on one {colour} {thing}",
    ]
    return texts[: 5 + image % 2]


def write_shards(folder: Path, images: int = 8, split: str = "test", pictures: bool = True) -> Path:
    """Two shards and a manifest, as preprocess/README.md describes them."""
    folder.mkdir(parents=True)
    tokenizer().save_pretrained(folder / "tokenizer")
    generator = np.random.default_rng(7)
    shards = []
    for number, keys in enumerate((range(images // 2), range(images // 2, images))):
        path = folder / f"{split}-{number:06d}.tar"
        captions = regions = 0
        with webdataset.TarWriter(str(path), encoder=False) as tar:
            for image in keys:
                texts, count = captions_of(image), int(generator.integers(2, 5))
                corners = np.sort(generator.random((count, 2, 2)), axis=1).reshape(count, 4)
                sample = {
                    "regions.npy": _npy(generator.normal(size=(count, WIDTH)).astype(np.float16)),
                    "boxes.npy": _npy(corners.astype(np.float32)),
                    "captions.json": json.dumps(
                        [{"id": f"{image}-{i}", "text": text, "spans": []} for i, text in enumerate(texts)]
                    ).encode(),
                }
                if pictures:
                    sample["image.png"] = picture(COLOURS[image % 6])
                for name, payload in sample.items():
                    tar.write({"__key__": key(image), name: payload})
                captions, regions = captions + len(texts), regions + count
        shards.append(
            {
                "file": path.name,
                "samples": len(keys),
                "captions": captions,
                "regions": regions,
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    totals = {"images": images, **{k: sum(s[k] for s in shards) for k in ("captions", "regions")}, "shards": shards}
    manifest = {
        "format": "tagsds-shards",
        "version": 1,
        "feature_dim": WIDTH,
        "num_classes": 0,
        "class_names": [],
        "max_regions": 4,
        "max_caption_pieces": 12,
        "tokenizer": "tokenizer",
        "vocab_size": len(WORDS),
        "splits": {split: totals},
        "made_by": {"command": "tiny_corpus", "source": "tiny", "arguments": {}, "version": "0.1.0"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def key(image: int) -> str:
    return f"{image:012d}"


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, "PNG")
    return stream.getvalue()


def write_checkpoint(folder: Path, words: list[str] = WORDS, **changes) -> Path:
    """A random model with its tokenizer, in Hugging Face's layout."""
    torch.manual_seed(3)
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "region_dim": WIDTH,
        "num_region_classes": 3,
        "trained_heads": ["itm", "rank"],
        "initializer_range": 0.5,  # so that the scores of a random model are far apart
    }
    model = UniterModel(UniterConfig(**(sizes | changes)))
    model.save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


def write_edits(path: Path, images: int = 8, extra: dict | None = None) -> Path:
    """SugarCrepe's layout: the thing of each image's first caption replaced."""
    entries = {
        str(image): {
            "filename": f"{key(image)}.jpg",
            "caption": captions_of(image)[0],
            "negative_caption": f"a {COLOURS[image % 6]} {THINGS[(image + image // 6 + 1) % 6]}",
        }
        for image in range(images)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries | (extra or {})))
    return path


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()
