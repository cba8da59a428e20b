"""Pictures of images, from a folder of files or from the shards, and as data URIs small enough for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tagsds.data.shards import read_samples
from tagsds.errors import UserError
from tagsds.evaluators.pairs_file import coco_number
from tagsds.files import is_file, read_bytes
from tagsds.formats.manifest import read_manifest

MOST_PIXELS = 1 << 25  # a picture of more is not decoded
MOST_BYTES = 1 << 25  # a file of more is not read
SIDE = 260  # most pixels of a side
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
COCO_PREFIXES = ("", "COCO_val2014_", "COCO_train2014_", "COCO_test2014_", "COCO_test2015_")


def find_pictures(
    folder: Path, keys: Iterable[str], splits_first: Iterable[str] = (), directory: Path | None = None
) -> dict[str, bytes]:
    """Encoded pictures of the given images by key; an image without one is left out.

    A file of `directory` comes before the picture in the shards. The shards of the named splits are searched first, then the others
    from small to large, and no further than the last key.

    UserError where `directory` is no folder, or a file in it cannot be read.
    """
    found = pictures_of(directory, keys) if directory is not None else {}
    for sample in samples_of(folder, [key for key in keys if key not in found], splits_first):
        if picture := picture_in(sample):
            found[sample["__key__"]] = picture
    return found


def pictures_of(directory: Path, keys: Iterable[str]) -> dict[str, bytes]:
    """Contents of the picture files of `directory` that belong to the keys. UserError where it is no folder."""
    check_directory(directory)
    found = {}
    for key in keys:
        for name in file_names(key):
            path = directory / name
            if is_file(path) and path.stat().st_size <= MOST_BYTES:
                found[key] = read_bytes(path)
                break
    return found


def check_directory(directory: Path, option: str = "--pictures") -> None:
    """UserError, which names the option, unless this is a folder."""
    if not directory.is_dir():
        raise UserError(f"{option} {directory} is no folder; give the folder that holds the picture files.")


def file_names(key: str) -> Iterator[str]:
    """Names that the picture of an image may have, the likeliest first: the key as it is (with a suffix already) or with one of
    SUFFIXES; for a key that is a number of COCO, also the names of its 2017 and 2014 files. A key that is a path has none."""
    if not key or key in (".", "..") or any(character in key for character in "/\\\0"):
        return
    stems = [key]
    number = coco_number(key)
    if number is not None:
        stems += [f"{prefix}{number:012d}" for prefix in COCO_PREFIXES] + [str(number)]
    yield key
    for stem in dict.fromkeys(stems):
        for suffix in SUFFIXES:
            yield stem + suffix
            yield stem + suffix.upper()


def samples_of(folder: Path, keys: Iterable[str], splits_first: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Raw samples of the given images, wherever in the shards they are, each once. The order of the search is find_pictures'."""
    wanted = set(keys)
    if not wanted:
        return
    manifest = read_manifest(folder)
    named = [split for split in dict.fromkeys(splits_first) if split in manifest.splits]
    others = sorted(set(manifest.splits) - set(named), key=lambda split: manifest.splits[split]["images"])
    paths = [folder / shard["file"] for split in (*named, *others) for shard in manifest.shards(split)]
    for path in paths:
        if not path.is_file():
            continue  # a split that was not copied to this machine
        for sample in read_samples([path]):
            if sample["__key__"] in wanted:
                wanted.discard(sample["__key__"])
                yield sample
                if not wanted:
                    return


def picture_in(sample: dict[str, Any]) -> bytes | None:
    """The encoded picture of a raw sample, None where it carries none."""
    return sample.get("image.jpg") or sample.get("image.png") or None


def aspect_of(picture: bytes | None) -> float | None:
    """Width over height of an encoded picture, from its header; None for bytes that are no picture."""
    try:
        width, height = Image.open(io.BytesIO(picture or b"")).size
        return width / height
    except Exception:  # of a damaged picture: OSError, SyntaxError, struct.error and more
        return None


def data_uri(picture: bytes) -> str | None:
    """Scaled down and encoded afresh, as PNG or JPEG, whichever is smaller; None for bytes that are no picture."""
    try:
        image: Image.Image = Image.open(io.BytesIO(picture))
        if image.width * image.height > MOST_PIXELS:
            return None
        image = image.convert("RGB")
    except Exception:  # of a damaged picture: OSError, SyntaxError, struct.error and more
        return None
    image.thumbnail((SIDE, SIDE))
    best: tuple[str, bytes] | None = None
    for name, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        stream = io.BytesIO()
        image.save(stream, name, **options)
        if best is None or len(stream.getvalue()) < len(best[1]):
            best = name, stream.getvalue()
    assert best is not None
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode('ascii')}"
