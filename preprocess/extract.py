"""tagsds-extract: pictures and captions in, the same shards as tagsds-pack's out; the features come from a vision model.

    tagsds-extract --pictures coco/images --model dinov2-base/ --pool 12 --split dataset_coco.json --out shards/coco-dinov2
    tagsds-extract --pictures coco/images --model detr-resnet-50/ --split dataset_coco.json --out shards/coco-detr

A model is a folder of save_pretrained with its preprocessor_config.json, or a name that transformers can resolve. ViT, CLIP and
DINOv2 give a region a patch (or a cell of pooled patches), a DETR-type detector one an object. A killed run continues with the
same command and ends byte-identical to an undisturbed one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from preprocess.extractors import detector, grid
from preprocess.extractors.pictures import find_pictures, listing, open_picture, thumbnail
from preprocess.extractors.vision import DTYPES, Vision, load_vision
from preprocess.pack import OPTION_FIELDS, add_common, add_split, pack_and_tell, positive_number, whole_number
from preprocess.records import ImageRecord
from preprocess.sources.karpathy import CaptionIndex, IndexedSource, read_index
from tagsds.errors import UserError, command

CHUNK = 128  # pictures of a shard in memory at a time; part of what a batch holds, hence of the last bit of a feature


@dataclass(frozen=True)
class Settings:
    """How features are made. `pool` is the grid's (0: every patch); threshold, fewest and most the detector's."""

    batch: int = 32
    pool: int = 0
    threshold: float = 0.2
    fewest: int = 10
    most: int = 100
    thumbnails: int = 224
    decoders: int = 4


@dataclass
class Prepared:
    """A picture ready for the model."""

    key: str
    pixels: torch.Tensor  # [3, h, w]
    size: tuple[int, int]  # of the picture itself, (width, height)
    small: bytes | None


@dataclass
class PictureSource(IndexedSource):
    """Runs the model over the pictures of a shard, `CHUNK` at a time, when the first of them is asked for."""

    index: CaptionIndex
    pictures: dict[str, Path]
    vision: Vision
    settings: Settings
    shard_size: int
    files: list[Path]
    folder: Path
    name: str = "extract"
    ready: dict[str, ImageRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        is_detector = self.vision.kind == "detector"
        self.class_names = detector.class_names(self.vision) if is_detector else []
        self.num_classes = len(self.class_names)
        self.feature_dim = detector.width_of(self.vision) if is_detector else grid.width_of(self.vision)
        self.position = {key: (split, i) for split, keys in self.index.splits.items() for i, key in enumerate(keys)}

    @property
    def facts(self) -> dict:
        """How the features were made, and the pictures, as far as no file of `files` says it."""
        s, vision = self.settings, self.vision
        made = {"model_type": vision.config.model_type, "kind": vision.kind, "dtype": str(vision.dtype).removeprefix("torch.")}
        made |= {"batch": s.batch, "thumbnails": s.thumbnails, "pictures": listing(self.folder, self.pictures)}
        if vision.kind == "grid":
            return made | {"pool": s.pool}
        return made | {"threshold": s.threshold, "min_regions": s.fewest, "max_regions": s.most}

    def record(self, split: str, key: str) -> ImageRecord:
        """Features float32 [n, D], boxes as fractions; from a detector also scores and soft classes."""
        if key not in self.ready:
            self.ready = {record.key: record for record in self.extract(self.chunk_of(split, key))}
        return self.ready.pop(key)

    def chunk_of(self, split: str, key: str) -> list[str]:
        """The pictures that are run together with this one: the same ones whether or not the run was broken off before."""
        keys, i = self.index.splits[split], self.position[key][1]
        shard = i // self.shard_size * self.shard_size
        start = shard + (i - shard) // CHUNK * CHUNK
        return keys[start : min(start + CHUNK, shard + self.shard_size)]

    def extract(self, keys: list[str]) -> Iterator[ImageRecord]:
        """Pictures of one size make a batch: nothing is padded, so that no picture's features depend on another's size."""
        with ThreadPoolExecutor(self.settings.decoders) as pool:
            prepared = list(pool.map(self.prepare, keys))
        by_size: dict[tuple[int, ...], list[Prepared]] = {}
        for item in prepared:
            by_size.setdefault(tuple(item.pixels.shape), []).append(item)
        for same in by_size.values():
            for start in range(0, len(same), self.settings.batch):
                yield from self.run(same[start : start + self.settings.batch])

    def prepare(self, key: str) -> Prepared:
        picture = open_picture(self.pictures[key])
        pixels = self.vision.processor(picture, return_tensors="pt")["pixel_values"][0]
        return Prepared(key, pixels, picture.size, thumbnail(picture, side) if (side := self.settings.thumbnails) else None)

    def run(self, batch: list[Prepared]) -> Iterator[ImageRecord]:
        pixels = torch.stack([item.pixels for item in batch])
        s = self.settings
        if self.vision.kind == "detector":
            for item, found in zip(batch, detector.detect(self.vision, pixels, s.threshold, s.fewest, s.most)):
                yield self.made(item, found.regions, found.boxes, scores=found.scores, classes=found.classes)
            return
        features, rows, columns = grid.grid_features(self.vision, pixels, s.pool)
        for item, regions in zip(batch, features.numpy()):
            boxes = grid.boxes_of(rows, columns, s.pool, grid.window(item.size, self.vision.processor))
            inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # where the processor pads, a cell may lie outside
            yield self.made(item, regions[inside], boxes[inside])

    def made(self, item: Prepared, regions: Any, boxes: Any, **more: Any) -> ImageRecord:
        captions = list(self.index.captions[item.key])
        origin = str(self.pictures[item.key])
        return ImageRecord(
            item.key, regions, boxes, captions, picture=item.small, origin=origin, captions_origin=self.index.origin, **more
        )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tagsds-extract", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Settings()
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="folder of picture files, and folders of them")
    parser.add_argument("--model", required=True, help="folder or name of a ViT, CLIP, DINOv2 or DETR-type model")
    parser.add_argument("--captions", type=Path, nargs="+", help="captions JSON; not needed with a Karpathy split")
    add_split(parser)
    parser.add_argument("--kind", choices=("auto", "grid", "detector"), default="auto", help="(default auto: by the model)")
    parser.add_argument("--pool", type=whole_number, default=defaults.pool, help="average patches to N x N at most (0: all)")
    parser.add_argument("--threshold", type=float, default=defaults.threshold, help="confidence of kept objects (%(default)s)")
    parser.add_argument("--min-regions", type=positive_number, default=defaults.fewest, help="objects kept at least (%(default)s)")
    parser.add_argument("--max-regions", type=positive_number, default=defaults.most, help="objects kept at most (%(default)s)")
    parser.add_argument("--batch", type=positive_number, default=defaults.batch, help="pictures a forward (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default auto)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="(default fp32)")
    parser.add_argument("--thumbnails", type=whole_number, default=defaults.thumbnails, metavar="PIXELS",
                        help="longer side of the pictures in the shards, for reports (default %(default)s; 0: none)")  # fmt: skip
    parser.add_argument("--broken-pictures", choices=("error", "skip"), default="error", help="(default error)")
    add_common(parser)
    args = parser.parse_args(arguments)
    if args.min_regions > args.max_regions:
        parser.error("--min-regions is above --max-regions")
    return args


def find_all(index: CaptionIndex, folder: Path, broken: str) -> dict[str, Path]:
    """The picture file of every image of the splits, in their order. `broken` skip: images whose file is no picture leave the
    splits (all files are opened for that, before the model is)."""
    found = find_pictures(folder)
    kept: dict[str, Path] = {}
    for split, keys in index.splits.items():
        if missing := [key for key in keys if key not in found]:
            raise UserError(
                f"{folder} holds no picture of image {missing[0]} of '{split}' (and {len(missing) - 1} others); "
                "give the folder with all of them, or a split file without them."
            )
        whole = [key for key in keys if broken == "error" or is_whole(found[key])]
        index.splits[split] = whole
        kept |= {key: found[key] for key in whole}
    index.splits = {split: keys for split, keys in index.splits.items() if keys}
    return kept


def is_whole(path: Path) -> bool:
    try:
        open_picture(path)
    except UserError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return False
    return True


def make_source(args: argparse.Namespace) -> PictureSource:
    """Captions, then pictures, then the model: the cheap mistakes are found first."""
    index = read_index(args.captions or [], args.split)
    pictures = find_all(index, args.pictures, args.broken_pictures)
    vision = load_vision(args.model, args.kind, args.device, args.dtype)
    if vision.kind == "grid":
        grid.patch_size(vision)
    settings = Settings(args.batch, args.pool, args.threshold, args.min_regions, args.max_regions, args.thumbnails)
    inputs = [*(args.captions or []), args.split, *vision.files]
    return PictureSource(index, pictures, vision, settings, args.shard_size, inputs, args.pictures)


def run(arguments: list[str] | None = None) -> None:
    args = parse(sys.argv[1:] if arguments is None else arguments)
    options = {name: getattr(args, name) for name in OPTION_FIELDS} | {"workers": 1}  # the model lives in this process
    pack_and_tell(lambda: make_source(args), lambda source: {"source": source.name, **source.facts}, options, args.out)


main = command(run)

if __name__ == "__main__":
    main()
