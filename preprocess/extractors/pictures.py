"""Picture files: which one is an image's, opening it, and the small copy that goes into the shard."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from preprocess.sources.karpathy import image_key
from tagsds.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def find_pictures(folder: Path) -> dict[str, Path]:
    """Picture files under a folder by image key (the file's name without folders and suffix; COCO's prefixes removed)."""
    if not folder.is_dir():
        raise UserError(f"--pictures {folder} is no folder; give the one that holds the picture files.")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            key = image_key(path.with_suffix(".jpg").name)
            if key in found:
                raise UserError(f"{found[key]} and {path} are both pictures of image {key}; keep one of them in {folder}.")
            found[key] = path
    return found


def listing(folder: Path, pictures: dict[str, Path]) -> dict[str, object]:
    """Number and a checksum of the names and sizes of picture files: their bytes would take long to read twice."""
    lines = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in pictures.values())
    return {"count": len(pictures), "names_and_sizes_sha256": hashlib.sha256(lines.encode()).hexdigest()}


def open_picture(path: Path) -> Image.Image:
    """RGB, upright (by its EXIF orientation). UserError for a file that is no whole picture."""
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError, SyntaxError) as error:
        raise UserError(f"{path} is no whole picture ({error}); replace it, or use --broken-pictures skip.") from error


def thumbnail(picture: Image.Image, side: int) -> bytes:
    """JPEG of at most `side` pixels a side."""
    small = picture.copy()
    small.thumbnail((side, side))
    stream = BytesIO()
    small.save(stream, "JPEG", quality=85)
    return stream.getvalue()
