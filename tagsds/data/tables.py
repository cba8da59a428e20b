"""The plain tables that a bank is made of: in memory or mapped from files, cut by images and joined without a second copy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged

LAYOUT: dict[str, type] = {
    "regions": np.float16,  # [regions, D]
    "boxes": np.float32,  # [regions, 4]
    "classes": np.float16,  # [regions, C]
    "region_lengths": np.int64,  # regions of each image
    "tokens": np.int32,  # word pieces of all captions
    "token_lengths": np.int64,
    "spans": np.int32,  # [*, 2]: span number, position
    "span_lengths": np.int64,
    "caption_lengths": np.int64,  # captions of each image, which stand one after another
    "texts": np.uint8,  # UTF-8
    "text_lengths": np.int64,  # bytes of each caption
    "keys": np.uint8,
    "key_lengths": np.int64,
    "caption_ids": np.uint8,
    "caption_id_lengths": np.int64,
}
OF_REGIONS = ("regions", "boxes", "classes")  # a row a region: what is large
OF_IMAGES = {"region_lengths": "regions", "caption_lengths": "captions", "key_lengths": "keys"}
OF_CAPTIONS = {"token_lengths": "tokens", "span_lengths": "spans", "text_lengths": "texts", "caption_id_lengths": "caption_ids"}


class Strings(Sequence[str]):
    """Strings that are decoded when they are asked for, from one table of bytes that processes can share.

    `data` uint8 [bytes], UTF-8; `lengths` int64 [N], bytes of each string.
    """

    def __init__(self, data: Tensor, lengths: Tensor) -> None:
        self._rows = Ragged(data, lengths)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return self._rows[index % len(self)].numpy().tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        data, end = self._rows.values.numpy().tobytes(), 0
        for length in self._rows.lengths.tolist():
            end += length
            yield data[end - length : end].decode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Strings({self[:3]}{', ...' if len(self) > 3 else ''}, {len(self)} in all)"


def encoded(strings: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes of all strings, uint8 [bytes], and the bytes of each, int64 [N]."""
    parts = [string.encode() for string in strings]
    return np.frombuffer(b"".join(parts), np.uint8), np.array([len(part) for part in parts], np.int64)


@dataclass
class Tables:
    """The tables of LAYOUT by name; `boxes` and `classes` may be missing. Tensors of a map are views of its pages."""

    of: dict[str, Tensor]

    @property
    def num_images(self) -> int:
        return len(self.of["key_lengths"])

    def images(self, first: int, last: int) -> Tables:
        """Images first..last - 1 with their captions: views, nothing is copied."""
        if first == 0 and last >= self.num_images:
            return self
        captions = _range(self.of["caption_lengths"], first, last)
        out: dict[str, Tensor] = {}
        for owners, begin, end in ((OF_IMAGES, first, last), (OF_CAPTIONS, *captions)):
            for lengths, name in owners.items():
                out[lengths] = self.of[lengths][begin:end]
                if name in self.of:
                    a, b = _range(self.of[lengths], begin, end)
                    out[name] = self.of[name][a:b]
        regions = _range(self.of["region_lengths"], first, last)
        out |= {name: self.of[name][slice(*regions)] for name in OF_REGIONS if name in self.of}
        return Tables(out)

    @staticmethod
    def join(parts: Sequence[Tables], device: torch.device | str = "cpu") -> Tables:
        """The parts one after another. What is large goes to the device table by table: the host holds no copy of it."""
        if len(parts) == 1:
            return parts[0]
        out = {}
        for name in parts[0].of:
            tables = [part.of[name] for part in parts]
            large = name in OF_REGIONS
            rows = sum(len(table) for table in tables)
            out[name] = torch.empty(rows, *tables[0].shape[1:], dtype=tables[0].dtype, device=device if large else "cpu")
            begin = 0
            for table in tables:
                out[name][begin : begin + len(table)].copy_(table)
                begin += len(table)
        return Tables(out)

    def bank(self, background_class: bool) -> Bank:
        """Without boxes, every region gets the whole image as its box: all have the same place, which weights trained with
        boxes know. Zeros would not do: a fresh box branch has no bias, and the LayerNorm of a zero vector multiplies gradients
        by 1 / sqrt(eps), a million."""
        of = self.of
        captions = of["caption_lengths"]
        owner = torch.repeat_interleave(torch.arange(self.num_images), captions)
        boxes = of.get("boxes")
        if boxes is None:
            boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=of["regions"].device).expand(len(of["regions"]), 4)
        return Bank(
            tokens=Ragged(of["tokens"], of["token_lengths"]),
            spans=Ragged(of["spans"], of["span_lengths"]),
            image_of_caption=owner,
            captions_of_image=Ragged(torch.arange(len(owner)), captions),
            regions=Ragged(of["regions"], of["region_lengths"]),
            boxes=boxes,
            classes=of.get("classes"),
            texts=Strings(of["texts"], of["text_lengths"]),
            keys=Strings(of["keys"], of["key_lengths"]),
            background_class=background_class,
            caption_ids=Strings(of["caption_ids"], of["caption_id_lengths"]),
        )


def _range(lengths: Tensor, first: int, last: int) -> tuple[int, int]:
    """Where the rows first..last - 1 begin and end."""
    begin = int(lengths[:first].sum())
    return begin, begin + int(lengths[first:last].sum())
