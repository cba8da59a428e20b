"""The folder of offline candidates (AOQ, arXiv 2003.03669): `tagsds-mine` and re-mining write it, training reads it.

captions_of_image.npy   int32 [I, Kc]   the hardest captions of each image but its own, hardest first; -1 behind a short row
images_of_caption.npy   int32 [C, Ki]   the hardest images of each caption likewise
candidates.json         what they are of, and their checksums; written last, so that a folder with it is whole
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagsds.errors import UserError
from tagsds.files import check_file, map_npy, sha256_of, write_json, write_npy
from tagsds.formats.manifest import Manifest
from tagsds.formats.shape import Count, Of, read_object

FORMAT, VERSION = "tagsds-candidates", 1
TABLES = ("captions_of_image", "images_of_caption")
MOST = 2**31 - 1  # captions or images that int32 can number
AGAIN = "run tagsds-mine again"
SHAPE = {
    "format": Of(str), "version": Count(), "split": Of(str), "data_sha256": Of(str),
    "sha256": {f"{name}.npy": Of(str) for name in TABLES},
    **dict.fromkeys(("images", "captions", "captions_per_image", "images_per_caption"), Count()),
}  # fmt: skip


def check_numbers(folder: Path, split: str, captions: int) -> None:
    """UserError for a split whose captions int32 cannot number: they would turn negative, which stands for none."""
    if captions > MOST:
        has = f"split '{split}' has {captions:,} captions"
        raise UserError(f"{folder}: {has} and candidates number at most {MOST:,}; mine a part of the corpus.")


@dataclass
class Candidates:
    """captions_of_image int32 [I, Kc], images_of_caption int32 [C, Ki] on the CPU: numbers of the split, hardest first, -1 behind
    a row that has fewer; nothing of the own image among them. `manifest` is the folder's candidates.json.

    Read from a folder they are maps of its files, so that the ranks of a machine share the pages.
    """

    captions_of_image: Tensor
    images_of_caption: Tensor
    manifest: dict[str, Any]
    folder: Path = Path("offline.candidates")

    @classmethod
    def read(cls, folder: Path, data_manifest: Manifest, split: str) -> Candidates:
        """The folder's candidates, once format, split, corpus and checksums are those of `data_manifest`."""
        folder = Path(folder)
        path = folder / "candidates.json"
        if not path.is_file():
            raise UserError(f"{path} does not exist; name a folder made by tagsds-mine in offline.candidates.")
        manifest = read_object(path, SHAPE, "a manifest of tagsds-mine", AGAIN)
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise UserError(f"{path} is not of format {FORMAT} {VERSION}; run tagsds-mine again.")
        made_for, made_of = manifest["split"], manifest["data_sha256"]
        counts = {"images": manifest["images"], "captions": manifest["captions"]}
        shapes = {
            "captions_of_image": (manifest["images"], manifest["captions_per_image"]),
            "images_of_caption": (manifest["captions"], manifest["images_per_caption"]),
        }
        sums = manifest["sha256"]
        if made_for != split:
            raise UserError(f"{path} is of split '{made_for}' and data.split is '{split}'; run tagsds-mine again for '{split}'.")
        if made_of != sha256_of(data_manifest.folder / "manifest.json"):
            raise UserError(f"{path} was mined in other shards than {data_manifest.folder}; run tagsds-mine again with these.")
        for name, count in counts.items():
            if count != data_manifest.splits[split][name]:
                have = data_manifest.splits[split][name]
                raise UserError(f"{path} counts {count} {name} where the shards hold {have}; run tagsds-mine again.")
        most = dict(zip(TABLES, (counts["captions"], counts["images"]), strict=True))
        tables = {name: _table(folder / f"{name}.npy", shape, sums[f"{name}.npy"], most[name]) for name, shape in shapes.items()}
        return cls(tables["captions_of_image"], tables["images_of_caption"], manifest, folder)


def _table(path: Path, shape: tuple[int, int], checksum: str, count: int) -> Tensor:
    """A mapped table of numbers below `count`, and -1."""
    check_file(path, "candidates.json", f"copy it again or {AGAIN}", checksum)
    array = map_npy(path, np.int32, shape, AGAIN)
    if array.size and not -1 <= int(array.min()) <= int(array.max()) < count:
        raise UserError(f"{path} names {int(array.max())} (or less than -1) where the split has {count}; {AGAIN}.")
    return torch.from_numpy(array)


def write_manifest(folder: Path, data: Manifest, split: str, widths: tuple[int, int], about: dict[str, Any]) -> dict[str, Any]:
    """candidates.json of a folder whose tables are written. `about` holds at least checkpoint and checkpoint_sha256."""
    counts = data.splits[split]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "split": split,
        "images": counts["images"],
        "captions": counts["captions"],
        "captions_per_image": widths[0],
        "images_per_caption": widths[1],
        **about,
        "data_sha256": sha256_of(data.folder / "manifest.json"),
        "sha256": {f"{name}.npy": sha256_of(folder / f"{name}.npy") for name in TABLES},
    }
    write_json(folder / "candidates.json", manifest)
    return manifest


def write_candidates(
    folder: Path, data: Manifest, split: str, captions_of_image: np.ndarray, images_of_caption: np.ndarray, about: dict[str, Any]
) -> None:
    """A whole folder from tables in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in zip(TABLES, (captions_of_image, images_of_caption), strict=True):
        write_npy(folder / f"{name}.npy", np.ascontiguousarray(table, dtype=np.int32))
    write_manifest(folder, data, split, (captions_of_image.shape[1], images_of_caption.shape[1]), about)
