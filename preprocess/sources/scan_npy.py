"""Source `scan-npy`: the "precomp" files of SCAN (arXiv 1803.08024), used by VSRN, BFAN and AOQ as well.

`<split>_ims.npy` float [images, 36, D] (or [images, D]: one region), `<split>_caps.txt` a caption a line, those of one image
in a row. Some copies repeat an image for each of its captions. There are no boxes, no confidences and no image names.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocess.arguments import positive_number, split_path
from preprocess.records import Caption, ImageRecord
from preprocess.sources.command import SourceCommand
from tagsds.errors import UserError
from tagsds.files import check_exist

SPLITS = ("train", "dev", "test")


@dataclass
class Part:
    """One split: its files, its captions, and how many rows of the array an image takes."""

    ims: Path
    caps: Path
    captions: list[str]
    images: int
    repeat: int


@dataclass
class ScanNpySource:
    """Captions in memory, features mapped from the file."""

    parts: dict[str, Part]
    captions_per_image: int
    files: list[Path]
    feature_dim: int
    facts: dict = field(default_factory=dict)
    num_classes: int = 0
    background_class: bool = False
    class_names: list[str] = field(default_factory=list)
    name: str = "scan-npy"
    has_boxes: bool = False
    imported_ids: bool = False

    @classmethod
    def read(
        cls, folder: Path | None, ims: list[tuple[str, Path]], caps: list[tuple[str, Path]], captions_per_image: int
    ) -> ScanNpySource:
        """From a folder in the published layout, or from one array and one text file a split."""
        if folder is not None:
            held = [split for split in SPLITS if (folder / f"{split}_ims.npy").is_file()]
            if not held:
                raise UserError(f"{folder} holds none of {', '.join(f'{s}_ims.npy' for s in SPLITS)}; check --folder.")
            ims = [*((split, folder / f"{split}_ims.npy") for split in held), *ims]
            caps = [*((split, folder / f"{split}_caps.txt") for split in held), *caps]
        arrays, texts = dict(ims), dict(caps)
        if len(arrays) != len(ims) or len(texts) != len(caps) or set(arrays) != set(texts) or not arrays:
            raise UserError("--ims and --caps must name the same splits, each once; give SPLIT=FILE to both.")
        parts = {split: read_part(path, texts[split], captions_per_image) for split, path in arrays.items()}
        widths = {int(rows_of(path).shape[-1]) for path in arrays.values()}
        if len(widths) > 1:
            listed = ", ".join(f"{path} {list(rows_of(path).shape)}" for path in arrays.values())
            raise UserError(f"the features differ in width ({listed}); pack files of one detector together.")
        files = [path for split, path in arrays.items() for path in (path, texts[split])]
        facts = {"rows_per_image": {split: part.repeat for split, part in parts.items()}}
        return cls(parts, captions_per_image, files, widths.pop(), facts)

    def splits(self) -> dict[str, list[str]]:
        """Keys are the split and a running number, for the files name no images."""
        return {split: [f"{split}-{i:06d}" for i in range(part.images)] for split, part in self.parts.items() if part.images}

    def texts(self, split: str) -> Iterable[str]:
        """Captions of a split."""
        return self.parts[split].captions

    def edits(self, split: str) -> dict[str, list[dict[str, str]]]:
        """None."""
        return {}

    def record(self, split: str, key: str) -> ImageRecord:
        """All regions in the order of the file, no boxes; a caption's id is the split and its line from 0."""
        part = self.parts[split]
        image = int(key.rsplit("-", 1)[1])
        rows = rows_of(part.ims)[image * part.repeat : (image + 1) * part.repeat]
        if not (rows == rows[:1]).all() and np.isfinite(rows).all():
            raise different(part, image)
        regions = np.array(rows[0], dtype=np.float32)
        lines = range(image * self.captions_per_image, (image + 1) * self.captions_per_image)
        return ImageRecord(
            key=key,
            regions=regions.reshape(-1, regions.shape[-1]),
            boxes=None,
            captions=[Caption(f"{split}-{line}", part.captions[line]) for line in lines],
            origin=str(part.ims),
            captions_origin=str(part.caps),
        )


def rows_of(path: Path) -> NDArray:
    """The array of a file, mapped: pages are read as images are packed."""
    check_exist([path])
    state = path.stat()
    return _map(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _map(path: Path, size: int, changed: int) -> NDArray:
    """Mapped once as long as the file stays as it is."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "pickle" in str(error):
            raise UserError(f"{path} is no plain npy array (a pickle could run code and is not read); export it again.") from error
        raise UserError(f"{path} is no whole npy array ({error}); copy it again.") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or array.dtype.kind != "f" or 0 in array.shape:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an npz archive"
        raise UserError(f"{path} holds {found}, not float [images, regions, D]; give the features (*_ims.npy).")
    return array


def read_part(ims: Path, caps: Path, captions_per_image: int) -> Part:
    """One split; from the two counts follows whether images are repeated for their captions."""
    rows = rows_of(ims)
    check_exist([caps])
    try:
        captions = caps.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{caps} is no UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    captions = captions[:-1] if captions[-1] == "" else captions
    if len(captions) == len(rows) * captions_per_image:
        return Part(ims, caps, captions, len(rows), 1)
    if len(captions) == len(rows) and len(rows) % captions_per_image == 0:
        part = Part(ims, caps, captions, len(rows) // captions_per_image, captions_per_image)
        for image in (0, part.images - 1):
            same = rows[image * part.repeat : (image + 1) * part.repeat]
            if not (same == same[:1]).all() and np.isfinite(same).all():
                raise different(part, image)
        return part
    raise UserError(
        f"{ims} has {len(rows)} rows and {caps} {len(captions)} captions, "
        f"which is neither {captions_per_image} captions a row nor a row a caption; set --captions-per-image or copy them again."
    )


def different(part: Part, image: int) -> UserError:
    """The rows of one image should be copies of each other and are not."""
    first = image * part.repeat
    return UserError(
        f"{part.ims} has a row a caption, but rows {first} to {first + part.repeat - 1} are not one image repeated; "
        "use --captions-per-image 1 if each caption has its own image."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="folder of {train,dev,test}_ims.npy and _caps.txt, those that are there")
    parser.add_argument("--ims", type=split_path, nargs="+", action="extend", default=[], metavar="SPLIT=FILE",
                        help="features of a split, if not from --folder")  # fmt: skip
    parser.add_argument("--caps", type=split_path, nargs="+", action="extend", default=[], metavar="SPLIT=FILE",
                        help="captions of a split, a line each")  # fmt: skip
    parser.add_argument("--captions-per-image", type=positive_number, default=5, help="(default 5)")


def make(args: argparse.Namespace) -> ScanNpySource:
    return ScanNpySource.read(args.folder, args.ims, args.caps, args.captions_per_image)


COMMAND = SourceCommand(
    "SCAN's precomp arrays: captions and region features without boxes", add_arguments, make,
    paths=frozenset({"folder"}), split_paths=frozenset({"ims", "caps"}),
)  # fmt: skip
