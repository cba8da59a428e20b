"""Source `coco`: captions with annotated boxes; the feature of a box is made from its class ("COCO boxes").

A region per box; its feature is a fixed random unit vector of the class, seeded by the class name, plus gaussian noise
seeded by (seed, image key), so that a pack is repeatable and no pixels are needed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocess.arguments import add_split, positive_number
from preprocess.records import ImageRecord, numpy_seed
from preprocess.sources.boxes import fractions
from preprocess.sources.command import SourceCommand
from preprocess.sources.karpathy import CaptionIndex, IndexedSource, image_key, read_index
from tagsds.errors import UserError
from tagsds.files import check_exist, read_json

WHOLE_IMAGE = "whole image"  # pseudo-class of the one region of an image without boxes

BoxTable = dict[str, list[tuple[float, float, float, float, int]]]  # key -> x1, y1, x2, y2 in pixels, class


@dataclass
class CocoSource(IndexedSource):
    """Index of captions and boxes of all images of the split, in memory."""

    index: CaptionIndex
    boxes: BoxTable
    class_names: list[str]
    feature_dim: int
    noise: float
    seed: int
    origin: str
    files: list[Path]
    name: str = "coco"

    @classmethod
    def read(
        cls, captions: list[Path], boxes: list[Path], split: Path, class_names: Path | None,
        feature_dim: int, noise: float, seed: int, empty_images: str,
    ) -> CocoSource:  # fmt: skip
        """Read the files. `empty_images`: what to do with images without boxes: error, whole or skip."""
        files = [*captions, *boxes, split, *([class_names] if class_names else [])]
        check_exist(files)
        index = read_index(captions, split)
        names: list[str] = class_names.read_text(encoding="utf-8").split("\n") if class_names else []
        names = [name.strip() for name in names if name.strip()]
        table: BoxTable = {}
        for path in boxes:
            if path.suffix == ".json":
                names = _read_instances(path, table, index, names)
            else:
                _read_text_boxes(path, table, names)
        source = cls(index, table, names, feature_dim, noise, seed, ", ".join(map(str, boxes)), files)
        source._settle_empty(empty_images)
        return source

    def __post_init__(self) -> None:
        self.num_classes = len(self.class_names)

    def _settle_empty(self, how: str) -> None:
        """Drop images without boxes from the splits, refuse them, or leave them to become one whole-image region."""
        for split, keys in self.index.splits.items():
            empty = [key for key in keys if not self.boxes.get(key)]
            if empty and how == "error":
                raise UserError(
                    f"{self.origin}: image {empty[0]} has no regions (as {len(empty)} of '{split}'); "
                    "use --empty-images whole or skip."
                )
            if how == "skip":
                self.index.splits[split] = [key for key in keys if self.boxes.get(key)]
        self.index.splits = {split: keys for split, keys in self.index.splits.items() if keys}

    def record(self, split: str, key: str) -> ImageRecord:
        """Features float32 [n, feature_dim], boxes as fractions, classes one-hot [n, 80]."""
        rows = self.boxes.get(key, [])
        rng = np.random.Generator(np.random.PCG64(numpy_seed("coco", self.seed, key)))
        noise = rng.standard_normal((max(len(rows), 1), self.feature_dim)) * (self.noise / self.feature_dim**0.5)
        classes = np.zeros((max(len(rows), 1), self.num_classes), dtype=np.float32)
        if rows:
            regions = np.stack([class_vector(self.class_names[row[4]], self.feature_dim) for row in rows])
            classes[np.arange(len(rows)), [row[4] for row in rows]] = 1.0
            boxes = fractions(np.array([row[:4] for row in rows]), self._size(key), f"{self.origin}: image {key}")
        else:
            regions = class_vector(WHOLE_IMAGE, self.feature_dim)[None]
            classes[:] = 1.0 / self.num_classes
            boxes = np.array([[0.0, 0.0, 1.0, 1.0]])
        captions = list(self.index.captions[key])
        return ImageRecord(
            key,
            regions + noise,
            boxes,
            captions,
            classes=classes,
            origin=self.origin,
            captions_origin=self.index.origin,
        )

    def _size(self, key: str) -> tuple[int, int]:
        if key not in self.index.sizes:
            raise UserError(
                f"{self.origin}: the size of image {key} is unknown; give captions or instances JSON that lists it."
            )
        return self.index.sizes[key]


_vectors: dict[tuple[str, int], NDArray[np.float64]] = {}


def class_vector(name: str, width: int) -> NDArray[np.float64]:
    """The unit vector [width] of a class, a function of its name."""
    if (name, width) not in _vectors:
        vector = np.random.Generator(np.random.PCG64(numpy_seed("class", name))).standard_normal(width)
        _vectors[name, width] = vector / np.linalg.norm(vector)
    return _vectors[name, width]


def _read_text_boxes(path: Path, table: BoxTable, names: list[str]) -> None:
    """Lines `folder/file.jpg x1,y1,x2,y2,class ...`, pixels, classes from 0."""
    if not names:
        raise UserError(f"{path} holds classes as numbers; give their names with --class-names (a class a line).")
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            name, *fields = line.split() or [""]
            if not name:
                continue
            rows = table.setdefault(image_key(name), [])
            for text in fields:
                try:
                    x1, y1, x2, y2, label = text.split(",")
                    box = (float(x1), float(y1), float(x2), float(y2), int(label))
                except ValueError:
                    raise UserError(
                        f"{path}, line {number}: '{text}' is not x1,y1,x2,y2,class; correct the line."
                    ) from None
                if not 0 <= box[4] < len(names):
                    raise UserError(
                        f"{path}, line {number}: class {label} is not one of the {len(names)} of --class-names."
                    )
                rows.append(box)


def _read_instances(path: Path, table: BoxTable, index: CaptionIndex, names: list[str]) -> list[str]:
    """An instances JSON in COCO's layout; returns the class names in the order of category ids."""
    data = read_json(path)
    try:
        categories = sorted(data["categories"], key=lambda category: category["id"])
        found = [category["name"] for category in categories]
        position = {category["id"]: i for i, category in enumerate(categories)}
        keys = {image["id"]: image_key(image["file_name"]) for image in data["images"]}
        for image in data["images"]:
            index.sizes[keys[image["id"]]] = (image["width"], image["height"])
        for note in data["annotations"]:
            x, y, width, height = note["bbox"]
            row = (x, y, x + width, y + height, position[note["category_id"]])
            table.setdefault(keys[note["image_id"]], []).append(row)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO instances file: {error!r} is missing; give instances_*.json.") from error
    if names and names != found:
        raise UserError(f"{path} names other classes than the ones before it or --class-names; use one list.")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--captions", type=Path, nargs="+", help="captions JSON as published, one file or several")
    parser.add_argument("--boxes", type=Path, nargs="+", required=True, help="instances JSON, or text lines of boxes")
    parser.add_argument("--class-names", type=Path, help="a class a line; needed with boxes as text")
    parser.add_argument("--feature-dim", type=positive_number, default=64, help="width of a feature (default 64)")
    parser.add_argument(
        "--noise", type=float, default=0.3, help="expected norm of the noise on a unit vector (default 0.3)"
    )
    parser.add_argument("--empty-images", choices=("error", "whole", "skip"), default="whole", help="(default whole)")
    add_split(parser)
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")


def make(args: argparse.Namespace) -> CocoSource:
    return CocoSource.read(
        args.captions or [], args.boxes, args.split, args.class_names,
        args.feature_dim, args.noise, args.seed, args.empty_images,
    )  # fmt: skip


COMMAND = SourceCommand(
    "COCO captions with annotated boxes; features made from the class of a box", add_arguments, make,
    paths=frozenset({"captions", "boxes", "class_names", "split"}),
)  # fmt: skip
