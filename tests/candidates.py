"""Offline candidates for tests: in an order drawn at random, complete, nothing of the own image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tagsds.data.bank import Bank
from tagsds.files import sha256_of
from tagsds.formats.candidates import Candidates


def candidates_of(bank: Bank, per_image: int, per_caption: int, seed: int = 0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    owner = bank.image_of_caption.tolist()
    captions, images = [], []
    for image in range(bank.num_images):
        others = [c for c in torch.randperm(bank.num_captions, generator=generator).tolist() if owner[c] != image]
        captions.append(others[:per_image])
    for caption in range(bank.num_captions):
        others = [i for i in torch.randperm(bank.num_images, generator=generator).tolist() if i != owner[caption]]
        images.append(others[:per_caption])
    return Candidates(torch.tensor(captions, dtype=torch.int32), torch.tensor(images, dtype=torch.int32), {})


def write_candidates(folder: Path, world: Path, split: str, candidates: Candidates) -> None:
    """A folder as tagsds-mine leaves it."""
    tables = {"captions_of_image": candidates.captions_of_image, "images_of_caption": candidates.images_of_caption}
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table.numpy(), allow_pickle=False)
    images, captions = tables.values()
    manifest = {
        "format": "tagsds-candidates", "version": 1, "split": split, "data_sha256": sha256_of(world / "manifest.json"),
        "images": len(images), "captions": len(captions), "captions_per_image": images.shape[1],
        "images_per_caption": captions.shape[1], "checkpoint": "none", "run": "drawn at random",
        "sha256": {f"{name}.npy": sha256_of(folder / f"{name}.npy") for name in tables},
    }  # fmt: skip
    (folder / "candidates.json").write_text(json.dumps(manifest))
