"""The source behind tagsds-extract: captions from an index, regions from a model that runs once a shard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from preprocess.extractors.batches import ahead, batches
from preprocess.extractors.pictures import BrokenError, decode, thumbnail
from preprocess.extractors.regions import Extractor, Pixels, Regions
from preprocess.records import ImageRecord
from preprocess.sources.karpathy import CaptionIndex, IndexedSource
from tagsds.errors import UserError

HELD_BATCHES = 4  # pictures that wait for others of their size, at most


@dataclass
class ExtractSource(IndexedSource):
    """Every image of the index has a picture, `folder / pictures[key]`."""

    index: CaptionIndex
    folder: Path
    pictures: dict[str, str]
    files: list[Path]
    extractor: Extractor
    processor: Any
    processor_file: Path
    device: torch.device
    batch: int  # pictures
    threads: int  # that decode
    bf16: bool = False
    broken: str = "error"  # or skip
    thumbnail: int = 0  # pixels of the longer side; 0: none
    name: str = "grid"
    command: str = "tagsds-extract"
    about: dict = field(default_factory=dict)  # what identifies model and pictures
    ready: dict[str, tuple[Regions, bytes | None]] = field(default_factory=dict)  # of the shard being written

    def __post_init__(self) -> None:
        self.feature_dim = self.extractor.feature_dim
        self.class_names = self.extractor.class_names
        self.num_classes = len(self.class_names)

    @property
    def facts(self) -> dict:
        """Checksums of the model's files, names and sizes of the pictures."""
        return self.about

    def prepare(self, split: str, keys: list[str]) -> list[str]:
        """Run the model over the pictures of a shard; the keys of those that could be decoded."""
        self.ready.clear()
        bar = tqdm(total=len(keys), desc=f"extract {split}", unit="image", leave=False, position=1, mininterval=0.5)
        with bar, torch.inference_mode():
            for group in batches(self._decoded(keys), lambda item: _size(item[1]), self.batch, HELD_BATCHES * self.batch):
                pictures = [pixels for _, pixels in group]
                for (key, pixels), regions in zip(group, self.extract(pictures)):
                    self.ready[key] = (_halved(regions), pixels.thumbnail)
                bar.update(len(group))
        return [key for key in keys if key in self.ready]

    def extract(self, batch: list[Pixels]) -> list[Regions]:
        """One forward for pictures of one processed size."""
        values = torch.stack([pixels.values for pixels in batch]).to(self.device)
        masks = [pixels.mask for pixels in batch if pixels.mask is not None]
        mask = torch.stack(masks).to(self.device) if len(masks) == len(batch) else None
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return self.extractor(batch, values, mask)

    def record(self, split: str, key: str) -> ImageRecord:
        """What `prepare` made of an image; each may be asked for once."""
        regions, small = self.ready.pop(key)
        return ImageRecord(
            key=key,
            regions=regions.features,
            boxes=regions.boxes,
            captions=list(self.index.captions[key]),
            classes=regions.classes,
            picture=small,
            origin=str(self.folder / self.pictures[key]),
            captions_origin=self.index.origin,
        )

    def _decoded(self, keys: list[str]) -> Iterator[tuple[str, Pixels]]:
        """The pictures that can be decoded, in order; the others end the run or are named and left out."""
        for key, pixels in zip(keys, ahead(self.pixels, keys, self.threads, 2 * self.batch)):
            path = self.folder / self.pictures[key]
            if isinstance(pixels, BrokenError):
                if self.broken == "error":
                    raise UserError(
                        f"{path}: the picture of image {key} cannot be decoded ({pixels}); "
                        "copy it again, or use --broken-pictures skip."
                    ) from pixels
                tqdm.write(f"{path}: image {key} left out, its picture cannot be decoded ({pixels}).", file=sys.stderr)
                continue
            shape = list(pixels.values.shape)
            if len(shape) != 3:
                raise UserError(
                    f"{self.processor_file}: {type(self.processor).__name__} makes an array {shape} of a picture, "
                    "not [3, height, width]; give a model that takes whole pictures."
                )
            problem = self.extractor.check(pixels)
            if problem is not None:
                raise UserError(
                    f"{path}: {self.processor_file} {problem}; set size and crop_size there as the model's config says."
                )
            yield key, pixels

    def pixels(self, key: str) -> Pixels | BrokenError:
        """Decode and process one picture, alone, so that the processor pads it for no other."""
        try:
            picture = decode(self.folder / self.pictures[key])
        except BrokenError as error:
            return error
        try:
            processed = self.processor(images=picture, return_tensors="pt")
        except (ValueError, RuntimeError, TypeError) as error:
            size = f"a picture of {picture.width} x {picture.height} pixels"
            raise UserError(
                f"{self.folder / self.pictures[key]}: {self.processor_file} cannot be applied to {size} ({error}); "
                "leave the picture out, or correct the settings there."
            ) from error
        mask = processed.get("pixel_mask")
        return Pixels(
            processed["pixel_values"][0].float(),
            None if mask is None else mask[0],
            picture.size,
            thumbnail(picture, self.thumbnail) if self.thumbnail else None,
        )


def _size(pixels: Pixels) -> tuple[int, ...]:
    return tuple(pixels.values.shape)


def _halved(regions: Regions) -> Regions:
    """Features and classes in float16, as the shard holds them: a shard of pictures is in memory at once."""
    with np.errstate(over="ignore"):  # infinity is named by shards.check_record
        features = regions.features.astype(np.float16)
        classes = None if regions.classes is None else regions.classes.astype(np.float16)
    return Regions(features, regions.boxes, classes=classes)
