"""UNITER's img_db: which variant of a folder is read, how many regions of an image count, and its arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocess.sources.lmdb_reader import RefusedError, database, decode_arrays
from tagsds.errors import UserError
from tagsds.files import read_json

THRESHOLD, FEWEST, MOST = 0.2, 10, 100  # regions above it count, but at least and at most so many
BOX_SLACK = 0.01  # fraction of the image that a box may leave it by; it is clipped
SIDE_SLACK = 0.01  # between the stored width and x2 - x1, both float16
SUM_SLACK = 0.01  # of a row of soft labels
COUNTED = re.compile(r"^feat_numbb(\d+)$")
CHOSEN = re.compile(r"^feat_(th[\d.]+_max\d+_min\d+)$")


@dataclass
class ImageDatabase:
    """One variant of one img_db."""

    folder: Path  # of the LMDB
    counts: dict[str, int] | None  # regions of an image, from nbb_*.json
    counts_file: Path | None
    fixed: int | None  # regions of every image, from the name feat_numbbN

    @classmethod
    def find(cls, folder: Path, variant: str | None) -> ImageDatabase:
        """`folder` holds data.mdb or variants that do; `variant` names one of them where there are several."""
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist or is no folder; check --img.")
        place = folder
        if not (folder / "data.mdb").is_file():
            held = sorted(path.parent.name for path in folder.glob("*/data.mdb"))
            if variant is None and len(held) != 1:
                hint = f"choose one with --variant: {', '.join(held)}" if held else "give the folder of an img_db"
                raise UserError(f"{folder} holds {len(held)} LMDB folders; {hint}.")
            chosen = variant if variant is not None else held[0]
            if chosen not in held:
                raise UserError(f"{folder} has no variant '{chosen}'; it holds: {', '.join(held) or 'none'}.")
            place = folder / chosen
        stem = place.name.removesuffix("_compressed")
        match = COUNTED.match(stem)
        if match:
            return cls(place, None, None, int(match.group(1)))
        chosen_by = CHOSEN.match(stem)
        wanted = f"nbb_{chosen_by.group(1)}.json" if chosen_by else f"nbb_th{THRESHOLD}_max{MOST}_min{FEWEST}.json"
        path = place.parent / wanted
        if not path.is_file():
            return cls(place, None, None, None)
        counts = read_json(path)
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise UserError(f"{path} is no map of image names to numbers of regions; copy it again.")
        return cls(place, counts, path, None)

    @property
    def file(self) -> Path:
        return self.folder / "data.mdb"

    def files(self) -> list[Path]:
        """Inputs."""
        return [self.file, *([self.counts_file] if self.counts_file else [])]

    def has(self, name: str) -> bool:
        """Whether the image is here."""
        return database(self.folder).has(name)

    def count(self, name: str, held: int, confidence: NDArray | None) -> int:
        """How many of the `held` regions count. A count may exceed them up to the least number that the variant asks for."""
        where = f"{self.file}: image {name}"
        if self.fixed is not None:
            return min(self.fixed, held)
        if self.counts is not None:
            if name not in self.counts:
                raise UserError(f"{self.counts_file} does not list image {name}; copy it again.")
            if self.counts[name] > max(held, FEWEST):
                raise UserError(f"{where} holds {held} regions, {self.counts_file} says {self.counts[name]}; copy it again.")
            return min(self.counts[name], held)
        if self.folder.name.startswith("feat_"):  # cut when it was written
            return held
        if confidence is None:
            raise UserError(f"{where} has no conf to choose regions by; put the nbb_*.json beside {self.folder.name}.")
        return min(max(int((confidence > THRESHOLD).sum()), FEWEST), MOST, held)


def read_image(images: ImageDatabase, name: str, soft_labels: bool) -> dict[str, NDArray]:
    """features [n, D], boxes float32 [n, 4], and where they are stored conf [n] and soft_labels [n, C]."""
    where = f"{images.file}: image {name}"
    value = database(images.folder).get(name)
    if value is None:
        raise UserError(f"{where} is missing; copy the file again.")
    wanted = ("features", "norm_bb", "conf", *(("soft_labels",) if soft_labels else ()))
    try:
        arrays = decode_arrays(value, wanted)
    except RefusedError as error:
        raise UserError(f"{where} {error}; copy the file again from its publisher.") from error
    for needed, width in (("features", None), ("norm_bb", 6)):
        array = arrays.get(needed)
        if array is None:
            raise UserError(f"{where} has no {needed}; give an img_db of UNITER.")
        if array.ndim != 2 or (width is not None and array.shape[1] != width):
            raise UserError(f"{where}: {needed} has shape {list(array.shape)}, not [n, {width or 'D'}]; copy the file again.")
    held = len(arrays["features"])
    for other, array in arrays.items():
        if len(array) != held:
            raise UserError(f"{where}: {other} has {len(array)} rows for {held} regions; copy the file again.")
    n = images.count(name, held, arrays.get("conf"))
    arrays = {key: array[:n] for key, array in arrays.items()}
    arrays["boxes"] = boxes_of(arrays.pop("norm_bb"), where)
    if "soft_labels" in arrays and n:
        sums = arrays["soft_labels"].astype(np.float64).sum(axis=1)
        if not (abs(sums - 1) < SUM_SLACK).all():
            row = int(np.argmax(~(abs(sums - 1) < SUM_SLACK)))
            raise UserError(f"{where}: soft_labels of region {row} sum to {sums[row]:.3f}, not 1; use --without-soft-labels.")
    return arrays


def boxes_of(norm_bb: NDArray, where: str) -> NDArray[np.float32]:
    """[n, 6] x1, y1, x2, y2, w, h as fractions -> float32 [n, 4], clipped where a box leaves the image by a hundredth."""
    wide = norm_bb.astype(np.float32)
    boxes = wide[:, :4]
    outside = ~((boxes >= -BOX_SLACK) & (boxes <= 1 + BOX_SLACK)).all(axis=1)
    sides = ~(abs(boxes[:, 2:] - boxes[:, :2] - wide[:, 4:]) <= SIDE_SLACK).all(axis=1)
    for wrong, fault in ((outside, "leaves the image"), (sides, "has sides that are not x2 - x1 and y2 - y1")):
        if wrong.any():
            row = int(np.argmax(wrong))
            numbers = ", ".join(f"{value:g}" for value in wide[row])
            raise UserError(f"{where}: norm_bb of region {row} ({numbers}) {fault}; copy the file again.")
    return boxes.clip(0.0, 1.0)
