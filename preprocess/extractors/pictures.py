"""Picture files: which file belongs to which image, and what identifies them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.sources.karpathy import CaptionIndex, image_key
from tagsds.errors import UserError
from tagsds.vision.pictures import SUFFIXES


@dataclass
class Listing:
    """The pictures under a folder, as paths relative to it with '/', by three names."""

    sizes: dict[str, int] = field(default_factory=dict)  # path -> bytes
    names: dict[str, list[str]] = field(default_factory=dict)  # file name -> paths
    keys: dict[str, list[str]] = field(default_factory=dict)  # key of the stem -> paths

    @classmethod
    def read(cls, folder: Path) -> Listing:
        """Walk the folder; hidden files and links to folders are left out."""
        listing = cls()
        for path, size in sorted(_walk(folder)):
            name = path.rsplit("/", 1)[-1]
            listing.sizes[path] = size
            listing.names.setdefault(name, []).append(path)
            listing.keys.setdefault(_lookup(image_key(Path(name).stem)), []).append(path)
        return listing

    def candidates(self, name: str | None, key: str, ids: list[int | str]) -> list[str]:
        """The paths that fit best: the path or its end as named, then the file name, then the key or an id as the stem."""
        if name is not None:
            name = name.replace("\\", "/")
            same = self.names.get(name.rsplit("/", 1)[-1], [])
            exact = [path for path in same if path == name or path.endswith("/" + name)]
            if exact or same:
                return [name] if name in exact else exact or same
        for stem in (key, *map(str, ids)):
            if _lookup(stem) in self.keys:
                return self.keys[_lookup(stem)]
        return []


def _walk(folder: Path) -> Iterator[tuple[str, int]]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path.relative_to(folder).as_posix(), path.stat().st_size


def _lookup(key: str) -> str:
    """Numbers compare as numbers: '42' and '000000000042' are one image."""
    return str(int(key)) if key.isdecimal() else key


def find_pictures(folder: Path, index: CaptionIndex, split_file: Path) -> tuple[dict[str, str], dict]:
    """Path relative to `folder` of every image of the split, and what identifies the pictures (names and sizes)."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder of the pictures to --pictures.")
    listing = Listing.read(folder)
    ids: dict[str, list[int | str]] = {}
    for id_, key in index.keys.items():
        ids.setdefault(key, []).append(id_)
    found: dict[str, str] = {}
    missing: list[tuple[str, str]] = []
    for split, keys in index.splits.items():
        for key in keys:
            paths = listing.candidates(index.pictures.get(key), key, ids.get(key, []))
            if len(paths) > 1:
                raise UserError(
                    f"{folder}: image {key} of split '{split}' may be {paths[0]} or {paths[1]}; keep one of them, "
                    f"or name its folder in {index.origin}."
                )
            if paths:
                found[key] = paths[0]
            else:
                missing.append((split, key))
    if missing:
        split, key = missing[0]
        others = f", as are the pictures of {len(missing) - 1} other images" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: the picture {index.pictures.get(key, key + '.jpg')} of image {key} of split '{split}' is missing{others}; "
            f"copy it there, or remove the image from {split_file}."
        )
    digest = hashlib.sha256()
    for key, path in found.items():
        digest.update(f"{key}\t{path}\t{listing.sizes[path]}\n".encode())
    total = sum(listing.sizes[path] for path in found.values())
    return found, {"count": len(found), "bytes": total, "sha256_of_names_and_sizes": digest.hexdigest()}
