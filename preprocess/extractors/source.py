"""The source behind tagsds-extract: captions from an index, regions from a model that runs once a shard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocess.extractors.batches import ahead, batches
from preprocess.records import ImageRecord
from preprocess.sources.karpathy import CaptionIndex, IndexedSource
from tagsds.errors import UserError
from tagsds.vision.model import VisionModel
from tagsds.vision.pictures import BrokenError, decode, thumbnail
from tagsds.vision.regions import Pixels, Regions

HELD_BATCHES = 4  # pictures that wait for others of their size, at most


@dataclass
class ExtractSource(IndexedSource):
    """Every image of the index has a picture, `folder / pictures[key]`."""

    index: CaptionIndex
    folder: Path
    pictures: dict[str, str]
    files: list[Path]
    vision: VisionModel
    batch: int  # pictures
    threads: int  # that decode
    broken: str = "error"  # or skip
    thumbnail: int = 0  # pixels of the longer side; 0: none
    name: str = "grid"
    command: str = "tagsds-extract"
    about: dict = field(default_factory=dict)  # what identifies model and pictures
    model: str = ""  # as it was named on the command line
    ready: dict[str, tuple[Regions, bytes | None]] = field(default_factory=dict)  # of the shard being written

    def __post_init__(self) -> None:
        self.feature_dim = self.vision.extractor.feature_dim
        self.class_names = self.vision.extractor.class_names
        self.num_classes = len(self.class_names)

    @property
    def facts(self) -> dict:
        """Checksums of the model's files, names and sizes of the pictures."""
        return self.about

    def prepare(self, split: str, keys: list[str]) -> list[str]:
        """Run the model over the pictures of a shard; the keys of those that could be decoded."""
        self.ready.clear()
        bar = tqdm(total=len(keys), desc=f"extract {split}", unit="image", leave=False, position=1, mininterval=0.5)
        with bar:
            for group in batches(self._decoded(keys), lambda item: _size(item[1]), self.batch, HELD_BATCHES * self.batch):
                pictures = [pixels for _, pixels in group]
                for (key, pixels), regions in zip(group, self.extract(pictures)):
                    self.ready[key] = (_halved(regions), pixels.thumbnail)
                bar.update(len(group))
        return [key for key in keys if key in self.ready]

    def extract(self, batch: list[Pixels]) -> list[Regions]:
        """One forward for pictures of one processed size."""
        return self.vision(batch)

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
            self.vision.check(pixels, path)
            yield key, pixels

    def pixels(self, key: str) -> Pixels | BrokenError:
        """Decode and process one picture, alone, so that the processor pads it for no other."""
        try:
            picture = decode(self.folder / self.pictures[key])
        except BrokenError as error:
            return error
        small = thumbnail(picture, self.thumbnail) if self.thumbnail else None
        return self.vision.pixels(picture, self.folder / self.pictures[key], small)


def _size(pixels: Pixels) -> tuple[int, ...]:
    return tuple(pixels.values.shape)


def _halved(regions: Regions) -> Regions:
    """Features and classes in float16, as the shard holds them: a shard of pictures is in memory at once."""
    with np.errstate(over="ignore"):  # infinity is named by shards.check_record
        features = regions.features.astype(np.float16)
        classes = None if regions.classes is None else regions.classes.astype(np.float16)
    return Regions(features, regions.boxes, classes=classes)
