"""True and false captions of an image, in SugarCrepe's layout (Hsieh et al., NeurIPS 2023, arXiv 2306.14610).

    {"0": {"filename": "000000331352.jpg", "caption": "...", "negative_caption": "..."}, ...}

A file is one kind of edit, named by its stem; a folder holds a file a kind (`DIR/edits/<split>/` of packed shards).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tagsds.errors import UserError
from tagsds.files import is_file, read_json

KEYS = ("filename", "caption", "negative_caption")
MOST_DIGITS = 18  # of COCO's number of an image


@dataclass(frozen=True)
class EditPair:
    """`image` is the row of the image among the split's keys."""

    image: int
    caption: str
    negative: str


@dataclass(frozen=True)
class EditSet:
    """The pairs of one kind of edit; `skipped` of the file name images outside the split."""

    kind: str
    file: Path
    pairs: list[EditPair]
    skipped: int = 0


def list_files(paths: Iterable[Path], option: str = "--pairs") -> list[Path]:
    """Files as given, folders as their *.json in order of name; `option` names them in messages."""
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{option} {path} is a folder without *.json; give a file, or a folder of them.")
        if not is_file(found[0]):
            raise UserError(f"{option} {path} does not exist; give a JSON file in SugarCrepe's layout, or a folder.")
        files += found
    stems = [file.stem for file in files]
    for stem in stems:
        if stems.count(stem) > 1:
            raise UserError(f"{option} names two files '{stem}.json'; a file's name is its kind of edit, rename one.")
    return files


def read_pairs(paths: Iterable[Path], keys: Sequence[str], skip_missing: bool = False) -> list[EditSet]:
    """Every file of `paths`, its images found among the split's `keys`."""
    index = KeyIndex(keys)
    return [read_file(path, index, skip_missing) for path in list_files(paths)]


def read_file(path: Path, index: KeyIndex, skip_missing: bool) -> EditSet:
    """One kind of edit. UserError for a bad file, or for images outside the split unless they are to be skipped."""
    pairs, missing = [], []
    for number, entry in _entries(path):
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), str) for key in KEYS):
            raise UserError(f"{path}: entry '{number}' lacks one of {', '.join(KEYS)}; use SugarCrepe's layout.")
        image = index.find(entry["filename"])
        if image is None:
            missing.append(entry["filename"])
        else:
            pairs.append(EditPair(image, entry["caption"], entry["negative_caption"]))
    check_found(path, missing, len(pairs), "pair", skip_missing)
    return EditSet(path.stem, path, pairs, len(missing))


def check_found(path: Path, missing: Sequence[str], found: int, what: str, skip_missing: bool) -> None:
    """UserError for entries of a file ("pair", "caption") whose images are not in the split, unless they are to be skipped, and
    where no entry is left."""
    if missing and not skip_missing:
        raise UserError(
            f"{path}: image '{missing[0]}' is not in the split (so for {len(missing)} of {len(missing) + found} "
            f"{what}s); choose the right --split, or leave those {what}s out with --skip-missing-pairs."
        )
    if not found:
        raise UserError(f"{path}: no {what} names an image of the split; choose the right --split.")


def coco_number(key: str) -> int | None:
    """COCO's number of an image key: 391895 of `COCO_val2014_000000391895`, `000000391895` and `391895`; None of others."""
    number = key.rsplit("_", 1)[-1] if key.startswith("COCO_") else key
    return int(number) if number.isdecimal() and len(number) <= MOST_DIGITS else None


class KeyIndex:
    """Finds a file name among image keys: by its stem, or by COCO's number.

    COCO's 2017 files are called `000000331352.jpg`, the same images in the 2014 splits `COCO_val2014_000000331352.jpg`,
    and some packers keep the bare number 331352; a stem that is a number matches all three.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._rows = {key: row for row, key in enumerate(keys)}
        self._numbers: dict[int, int] = {}
        for row, key in enumerate(keys):
            number = coco_number(key)
            if number is not None:
                self._numbers.setdefault(number, row)

    def __contains__(self, key: str) -> bool:
        """Whether this is the key of an image, letter by letter."""
        return key in self._rows

    def find(self, filename: str) -> int | None:
        """Row of the image, or None."""
        stem = Path(filename).stem
        row = self._rows.get(stem)
        return self._numbers.get(int(stem)) if row is None and stem.isdecimal() and len(stem) <= MOST_DIGITS else row


def _entries(path: Path) -> Iterable[tuple[str, object]]:
    content = read_json(path, "give a file in SugarCrepe's layout")
    if isinstance(content, list):
        return [(str(number), entry) for number, entry in enumerate(content)]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no table of pairs; give a file in SugarCrepe's layout.")
    return content.items()
