"""Source `butd-tsv`: output of the bottom-up-attention detector, a line an image, arrays in base64.

Two layouts are known by their number of columns. 10: img_id, img_h, img_w, objects_id i64, objects_conf f32,
attrs_id i64, attrs_conf f32, num_boxes, boxes f32 [n, 4] pixels, features f32 [n, D]. 6 (the first release):
image_id, image_w, image_h, num_boxes, boxes, features; it has no confidences. The index holds where each line begins,
never the features.

`objects_id` counts the detector's classes without background. Soft labels have UNITER's columns (arXiv 1909.11740), whose
first is the background: class k is column k + 1.
"""

from __future__ import annotations

import argparse
import base64
import binascii
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from preprocess.arguments import add_split, whole_number
from preprocess.records import ImageRecord
from preprocess.sources.boxes import fractions
from preprocess.sources.command import SourceCommand
from preprocess.sources.karpathy import CaptionIndex, IndexedSource, image_key, read_index
from tagsds.errors import UserError
from tagsds.files import check_exist
from tagsds.vision.confidence import most_confident

CONFIDENCE = 0.2  # regions above it are kept,
FEWEST, MOST = 10, 100  # but at least and at most so many
FIXED = 36
BACKGROUND = "__background__"  # its name in the detector's own list; "background" is one of its objects as well
SHOWN_BYTES = 1 << 30  # from this size on, reading a file through shows a bar
COLUMNS = {
    10: (
        "img_id",
        "img_h",
        "img_w",
        "objects_id",
        "objects_conf",
        "attrs_id",
        "attrs_conf",
        "num_boxes",
        "boxes",
        "features",
    ),
    6: ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features"),
}


@dataclass(frozen=True)
class Line:
    """Where the line of an image is."""

    file: Path
    offset: int  # bytes
    length: int  # bytes
    num_boxes: int


@dataclass
class ButdTsvSource(IndexedSource):
    """Index of the lines that the split needs."""

    index: CaptionIndex
    lines: dict[str, Line]
    files: list[Path]
    select: str
    num_classes: int  # columns of the soft labels, the background first; 0: no soft labels
    class_names: list[str] = field(default_factory=list)  # of the columns
    feature_dim: int = 0
    name: str = "butd-tsv"

    def __post_init__(self) -> None:
        self.background_class = self.num_classes > 0

    @classmethod
    def read(
        cls, tsv: list[Path], captions: list[Path], split: Path, class_names: Path | None,
        select: str, soft_classes: int, empty_images: str,
    ) -> ButdTsvSource:  # fmt: skip
        """Read captions and split, and find the line of each image. `empty_images`: error or skip.

        `class_names` holds a class a line, in the order of `objects_id`: one line fewer than there are columns.
        """
        files = [*tsv, *captions, split, *([class_names] if class_names else [])]
        check_exist(files)
        index = read_index(captions, split)
        names: list[str] = []
        if class_names is not None and soft_classes:
            names = [line.split(",")[0].strip() for line in class_names.read_text(encoding="utf-8").splitlines()]
            if len(names) + 1 != soft_classes:
                raise UserError(
                    f"{class_names} names {len(names)} classes, which with the background are {len(names) + 1} columns, and "
                    f"--soft-classes says {soft_classes}; make them agree."
                )
            names = [BACKGROUND, *names]
        source = cls(index, {}, files, select, soft_classes, names)
        for path in tsv:
            source._scan(path, {_lookup(key) for keys in index.splits.values() for key in keys})
        source._settle_missing(tsv, empty_images)
        first = next(iter(source.lines))
        source.feature_dim = source._arrays(first)["features"].shape[1]
        return source

    def _scan(self, path: Path, wanted: set[str]) -> None:
        offset = 0
        size = path.stat().st_size
        bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"index {path.name}", disable=size < SHOWN_BYTES)
        with open(path, "rb") as stream, bar:
            for number, line in enumerate(stream, 1):
                fields = line.count(b"\t") + 1
                if line.strip():
                    if fields not in COLUMNS:
                        raise UserError(
                            f"{path}, line {number} has {fields} columns where 6 or 10 are expected; "
                            "the file may be cut short: copy it again."
                        )
                    at = COLUMNS[fields].index("num_boxes")
                    head = line.split(b"\t", at + 1)
                    key = _lookup(image_key(head[0].decode()))
                    if key in wanted:
                        if key in self.lines:
                            raise UserError(
                                f"{path}, line {number}: image {key} is there twice; remove one of the lines."
                            )
                        if not head[at].isdigit():
                            raise UserError(
                                f"{path}, line {number}: '{head[at].decode()}' boxes of image {key}; extract it again."
                            )
                        self.lines[key] = Line(path, offset, len(line), int(head[at]))
                offset += len(line)
                bar.update(len(line))

    def _settle_missing(self, tsv: list[Path], empty_images: str) -> None:
        """Images of the split that have no line are an error, those without boxes an error or skipped."""
        for split, keys in self.index.splits.items():
            for key in keys:
                line = self.lines.get(_lookup(key))
                if line is None:
                    names = ", ".join(str(path) for path in tsv)
                    raise UserError(
                        f"image {key} of split '{split}' is not in {names}; give its file too or remove it."
                    )
                if line.num_boxes == 0 and empty_images == "error":
                    raise UserError(
                        f"{line.file}: image {key} has no regions; use --empty-images skip or extract it again."
                    )
            self.index.splits[split] = [key for key in keys if self.lines[_lookup(key)].num_boxes]
        self.index.splits = {split: keys for split, keys in self.index.splits.items() if keys}
        if not self.index.splits:
            raise UserError(f"{tsv[0]}: no image of the split has regions; extract them again.")
        self.lines = {key: line for key, line in self.lines.items() if line.num_boxes}

    def record(self, split: str, key: str) -> ImageRecord:
        """Features float32 [n, D], boxes as fractions, confidences, soft labels if asked for; most confident first."""
        line = self.lines[_lookup(key)]
        where = f"{line.file}: image {key}"
        row = self._arrays(_lookup(key))
        confidence = row.get("objects_conf")
        if confidence is None and self.select == "confidence":
            raise UserError(f"{where} has no confidences (6 columns); use --select fixed36.")
        if confidence is not None and not np.isfinite(confidence).all():
            raise UserError(f"{where}: a confidence is NaN; extract the image again.")
        keep = choose(confidence, line.num_boxes, self.select)
        classes = None
        if self.num_classes:
            if confidence is None:
                raise UserError(f"{where} has no classes (6 columns); leave --soft-classes out.")
            classes = soft_labels(row["objects_id"][keep], confidence[keep], self.num_classes, where)
        return ImageRecord(
            key=key,
            regions=row["features"][keep],
            boxes=fractions(row["boxes"][keep].astype(np.float64), row["size"], where),
            captions=list(self.index.captions[key]),
            classes=classes,
            origin=str(line.file),
            captions_origin=self.index.origin,
        )

    def _arrays(self, key: str) -> dict:
        """The arrays of a line by column name, and size = (width, height) in pixels."""
        line = self.lines[key]
        with open(line.file, "rb") as stream:
            stream.seek(line.offset)
            fields = stream.read(line.length).rstrip(b"\r\n").split(b"\t")
        row = dict(zip(COLUMNS[len(fields)], fields))
        n = line.num_boxes
        try:
            found: dict = {"size": (int(row["img_w"]), int(row["img_h"]))}
            found["boxes"] = _array(row["boxes"], np.float32).reshape(n, 4)
            found["features"] = _array(row["features"], np.float32).reshape(n, -1)
            if "objects_conf" in row:
                found["objects_conf"] = _array(row["objects_conf"], np.float32).reshape(n)
                found["objects_id"] = _array(row["objects_id"], np.int64).reshape(n)
        except (ValueError, binascii.Error) as error:
            raise UserError(f"{line.file}: the line of image {key} is damaged ({error}); extract it again.") from error
        return found


def choose(confidence: NDArray | None, num_boxes: int, how: str) -> NDArray[np.int64]:
    """Which regions are kept, int64 [n], the most confident first (in file order where there is no confidence)."""
    if confidence is None:
        return np.arange(num_boxes)[:FIXED]
    if how == "fixed36":
        return most_confident(confidence, CONFIDENCE, FIXED, FIXED)
    return most_confident(confidence, CONFIDENCE, FEWEST, MOST)


def soft_labels(ids: NDArray, confidence: NDArray, width: int, where: str) -> NDArray[np.float32]:
    """Soft labels of n regions, float32 [n, width], rows sum to 1, column 0 = background, column k + 1 = class k.

    ids [n] are classes without background, confidence [n] their probabilities. The detected class gets its confidence, each of
    the other width - 1 columns, background among them, an equal share of the rest: the file holds no distribution.
    UserError for a class without a column.
    """
    if ids.min() < 0:
        raise UserError(f"{where}: class {int(ids.min())} is negative; extract the image again.")
    if ids.max() + 1 >= width:
        raise UserError(
            f"{where}: class {int(ids.max())} is column {int(ids.max()) + 1} after the background, --soft-classes {width} has "
            f"columns 0 to {width - 1}; raise it (1601 for Visual Genome's 1,600 classes)."
        )
    confidence = confidence.clip(0.0, 1.0).astype(np.float64)
    labels = np.repeat(((1.0 - confidence) / max(width - 1, 1))[:, None], width, axis=1)
    labels[np.arange(len(ids)), ids + 1] = confidence
    return labels.astype(np.float32)


def _lookup(key: str) -> str:
    """Numbers compare as numbers: '132417' and '000000132417' are one image."""
    return str(int(key)) if key.isdigit() else key


def _array(field: bytes, dtype: type) -> NDArray:
    return np.frombuffer(base64.b64decode(field, validate=True), dtype=dtype)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tsv", type=Path, nargs="+", required=True, help="TSV file, or several")
    parser.add_argument("--captions", type=Path, nargs="+", help="captions JSON; not needed with a Karpathy split")
    parser.add_argument("--select", choices=("confidence", "fixed36"), default="confidence",
                        help="above 0.2, 10 to 100 of them; or the 36 best (default confidence)")  # fmt: skip
    parser.add_argument("--soft-classes", type=whole_number, default=0, metavar="N",
                        help="write soft labels of N columns: background, then the classes; 1601 for Visual Genome "
                        "(default 0: none)")  # fmt: skip
    parser.add_argument("--empty-images", choices=("error", "skip"), default="error", help="(default error)")
    parser.add_argument("--class-names", type=Path, help="a class a line without the background, synonyms after commas; for people")
    add_split(parser)


def make(args: argparse.Namespace) -> ButdTsvSource:
    return ButdTsvSource.read(
        args.tsv, args.captions or [], args.split, args.class_names, args.select, args.soft_classes, args.empty_images
    )


COMMAND = SourceCommand(
    "bottom-up-attention features as TSV", add_arguments, make,
    paths=frozenset({"tsv", "captions", "class_names", "split"}),
)  # fmt: skip
