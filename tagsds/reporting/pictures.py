"""Pictures of the shards as data URIs, small enough for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tagsds.data.shards import read_samples
from tagsds.formats.manifest import read_manifest

MOST_PIXELS = 1 << 25  # a picture of more is not decoded
SIDE = 260  # most pixels of a side


def find_pictures(folder: Path, keys: Iterable[str], splits_first: Iterable[str] = ()) -> dict[str, bytes]:
    """Pictures of the given images, wherever in the shards they are; those whose samples carry none are left out.

    The named splits are searched first, then the others from small to large, and no further than the last key.
    """
    manifest = read_manifest(folder)
    wanted = set(keys)
    found: dict[str, bytes] = {}
    named = [split for split in dict.fromkeys(splits_first) if split in manifest.splits]
    others = sorted(set(manifest.splits) - set(named), key=lambda split: manifest.splits[split]["images"])
    paths = [folder / shard["file"] for split in (*named, *others) for shard in manifest.shards(split)]
    for path in paths:
        if not wanted:
            break
        if not path.is_file():
            continue  # a split that was not copied to this machine
        for sample in read_samples([path]):
            key = sample["__key__"]
            if key in wanted:
                wanted.discard(key)
                picture = sample.get("image.jpg") or sample.get("image.png")
                if picture:
                    found[key] = picture
                if not wanted:
                    break
    return found


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
