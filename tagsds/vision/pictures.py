"""A picture file as pixels, and a picture as a small JPEG."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # not EPS: Pillow would start a program for it
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
JPEG_QUALITY = 85

Image.init()  # otherwise Pillow learns of TIFF and WEBP only when it meets something that is neither JPEG nor PNG


class BrokenError(Exception):
    """A picture that cannot be decoded, with what Pillow says of it."""


def decode(path: Path) -> Image.Image:
    """The picture in RGB as it is seen (its EXIF orientation applied); BrokenError where it cannot be decoded."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return upright(image)
    except Exception as error:  # Pillow raises whatever a damaged file provokes
        raise BrokenError(str(error) or type(error).__name__) from error


def upright(image: Image.Image) -> Image.Image:
    """An opened picture in RGB with its EXIF orientation applied."""
    return ImageOps.exif_transpose(image).convert("RGB")


def thumbnail(picture: Image.Image, longest: int) -> bytes:
    """A JPEG whose longer side is at most `longest` pixels."""
    small = picture.copy()
    small.thumbnail((longest, longest))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()
