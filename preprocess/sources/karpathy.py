"""Images, captions and splits of caption corpora: COCO captions JSON, Karpathy JSON, JSON of ids per split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.records import Caption
from tagsds.errors import UserError
from tagsds.files import read_json

COCO_STEM = re.compile(r"^(?:COCO_[a-z]+\d{4}_)?(\d{12})$")
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "dev", "test": "test"}


def image_key(name: str | int) -> str:
    """Key of an image from its id or file name: 12 digits for COCO, the stem otherwise, '.' and blanks as '_'."""
    if isinstance(name, int):
        return f"{name:012d}"
    stem = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem = re.sub(r"\.(jpe?g|png|npz|npy)$", "", stem, flags=re.IGNORECASE)
    match = COCO_STEM.match(stem)
    return match.group(1) if match else re.sub(r"[^A-Za-z0-9_-]", "_", stem)


@dataclass
class CaptionIndex:
    """Captions by image key, sizes by image key in pixels (width, height), keys by split; `origin` names the files.

    `pictures` is the picture of an image as the captions or the split file name it, with its folder where they know one.
    """

    captions: dict[str, list[Caption]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    splits: dict[str, list[str]] = field(default_factory=dict)
    keys: dict[int | str, str] = field(default_factory=dict)  # image id of the captions files -> key
    pictures: dict[str, str] = field(default_factory=dict)
    origin: str = ""

    def texts(self, split: str) -> Iterator[str]:
        """Captions of a split in order."""
        for key in self.splits[split]:
            yield from (caption.text for caption in self.captions[key])


def read_index(captions: list[Path], split: Path) -> CaptionIndex:
    """Captions from the captions files (or from a Karpathy JSON where none is given), cut by the split file.

    Order of a split = order in the split file; captions of an image in the order of their ids.
    """
    index = CaptionIndex(origin=", ".join(str(path) for path in captions) or str(split))
    for path in captions:
        _add_coco_captions(index, path)
    parts = read_json(split)
    if isinstance(parts, dict) and isinstance(parts.get("images"), list):
        _add_karpathy(index, parts["images"], split, with_captions=not captions)
    elif isinstance(parts, dict) and all(isinstance(ids, list) for ids in parts.values()):
        if not captions:
            raise UserError(f"{split} names images but holds no captions; give --captions as well.")
        index.splits = {name: [index.keys.get(i) or image_key(i) for i in ids] for name, ids in parts.items() if ids}
    else:
        raise UserError(f'{split} is no split file; it should be {{"train": [ids], ...}} or a Karpathy JSON.')
    _check_splits(index, split)
    return index


def _add_coco_captions(index: CaptionIndex, path: Path) -> None:
    """Captions and sizes of a captions JSON in COCO's layout."""
    data = read_json(path)
    try:
        keys = {image["id"]: image_key(image["file_name"]) for image in data["images"]}
        index.keys.update(keys)
        index.pictures.update({keys[image["id"]]: image["file_name"] for image in data["images"]})
        for image in data["images"]:
            if "width" in image and "height" in image:
                index.sizes[keys[image["id"]]] = (image["width"], image["height"])
        for note in sorted(data["annotations"], key=lambda note: note["id"]):
            if note["image_id"] not in keys:
                raise UserError(
                    f"{path}: caption {note['id']} belongs to image {note['image_id']}, which the file does not list; "
                    "add the image or remove the caption."
                )
            caption = Caption(str(note["id"]), note["caption"])
            index.captions.setdefault(keys[note["image_id"]], []).append(caption)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no COCO captions file: {error!r} is missing; give captions_*.json.") from error


def _add_karpathy(index: CaptionIndex, images: list[dict], path: Path, with_captions: bool) -> None:
    """Splits of a Karpathy JSON (restval joins train, val is called dev) and, if asked, its sentences."""
    for image in images:
        try:
            name, sentences = KARPATHY_SPLITS.get(image["split"]), image["sentences"]
            key = image_key(int(image["cocoid"])) if "cocoid" in image else image_key(image["filename"])
            if name is None:
                raise UserError(
                    f"{path}: image {key} has the unknown split '{image['split']}'; known: train, restval, val, test."
                )
            index.splits.setdefault(name, []).append(key)
            if "filename" in image:
                index.pictures[key] = "/".join(filter(None, (image.get("filepath"), image["filename"])))
            if with_captions:
                index.captions[key] = [Caption(str(s["sentid"]), s["raw"]) for s in sentences]
        except KeyError as error:
            raise UserError(f"{path} is no Karpathy JSON: an image lacks {error}; download it again.") from error
    order = [name for name in ("train", "dev", "test") if name in index.splits]
    index.splits = {name: index.splits[name] for name in order}


def _check_splits(index: CaptionIndex, path: Path) -> None:
    """Every image once, every image with captions."""
    owner: dict[str, str] = {}
    for name, keys in index.splits.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise UserError(f"{path}: the split name '{name}' may hold letters, digits and '_' only; rename it.")
        for key in keys:
            if key in owner:
                raise UserError(
                    f"{path}: image {key} is in '{owner[key]}' and again in '{name}'; keep it in one place."
                )
            owner[key] = name
            if not index.captions.get(key):
                raise UserError(
                    f"{path}: image {key} of '{name}' has no caption in {index.origin}; remove it or add some."
                )


class IndexedSource:
    """A source whose splits and captions come from an index, without edited captions of its own."""

    index: CaptionIndex
    background_class: bool = False
    has_boxes: bool = True
    imported_ids: bool = False

    @property
    def facts(self) -> dict:
        """Nothing beyond the files' checksums."""
        return {}

    def splits(self) -> dict[str, list[str]]:
        """Keys in the order of the split file."""
        return self.index.splits

    def texts(self, split: str) -> Iterable[str]:
        """Captions of a split."""
        return self.index.texts(split)

    def edits(self, split: str) -> dict[str, list[dict[str, str]]]:
        """None; SugarCrepe's files serve COCO."""
        return {}
