"""Offline candidates for tests: in an order drawn at random, complete, nothing of the own image."""

from __future__ import annotations

import torch

from tagsds.data.bank import Bank
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
