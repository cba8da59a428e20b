"""Offline hard negatives: what `tagsds-mine` found in the whole training set, and draws from it (AOQ, arXiv 2003.03669; method 6).

Shapes: I = images, C = captions of the split; Kc = captions kept of an image, Ki = images kept of a caption; B = true pairs.
Rank = column of a row of candidates, 0 = hardest. An image goes with five captions, so caption rank n goes with image rank n // 5.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.shards import Manifest
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.negatives.random import Hard, keep_hardest
from tagsds.retrieval.scorer import Scorer

FORMAT, VERSION = "tagsds-candidates", 1
CAPTIONS_PER_IMAGE = 5


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
        try:
            manifest = json.loads(path.read_text())
            if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
                raise UserError(f"{path} is not of format {FORMAT} {VERSION}; run tagsds-mine again.")
            made_for, made_of = manifest["split"], manifest["data_sha256"]
            counts = {"images": manifest["images"], "captions": manifest["captions"]}
            shapes = {
                "captions_of_image": (manifest["images"], manifest["captions_per_image"]),
                "images_of_caption": (manifest["captions"], manifest["images_per_caption"]),
            }
            sums = {name: manifest["sha256"][f"{name}.npy"] for name in shapes}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a manifest of tagsds-mine ({error}); run tagsds-mine again.") from error
        if made_for != split:
            raise UserError(f"{path} is of split '{made_for}' and data.split is '{split}'; run tagsds-mine again for '{split}'.")
        if made_of != sha256_of(data_manifest.folder / "manifest.json"):
            raise UserError(f"{path} was mined in other shards than {data_manifest.folder}; run tagsds-mine again with these.")
        for name, count in counts.items():
            if count != data_manifest.splits[split][name]:
                have = data_manifest.splits[split][name]
                raise UserError(f"{path} counts {count} {name} where the shards hold {have}; run tagsds-mine again.")
        tables = {name: _table(folder / f"{name}.npy", shape, sums[name]) for name, shape in shapes.items()}
        return cls(tables["captions_of_image"], tables["images_of_caption"], manifest, folder)


def _table(path: Path, shape: tuple[int, int], checksum: str) -> Tensor:
    if not path.is_file():
        raise UserError(f"{path} is named in candidates.json but missing; run tagsds-mine again.")
    if sha256_of(path) != checksum:
        raise UserError(f"{path} has another sha256 than candidates.json says; copy it again or run tagsds-mine again.")
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # torch wants it writable; copy on write leaves the file alone
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is no whole npy array; run tagsds-mine again.") from error
    if array.dtype != np.int32 or array.shape != shape:
        raise UserError(f"{path} is {array.dtype} {list(array.shape)}, not int32 {list(shape)}; run tagsds-mine again.")
    return torch.from_numpy(array)


def check_ranks(candidates: Candidates, first: int, last: int, count: int = 0) -> None:
    """Every image and caption must have candidates up to rank `last`, and the ranks be enough for `count` distinct captions. (Of
    images all are taken where the ranks hold fewer than `count`.)"""
    captions, images = candidates.captions_of_image, candidates.images_of_caption
    if not (_reaches(captions, last) and _reaches(images, last // CAPTIONS_PER_IMAGE)):
        most = min(_fewest(captions), CAPTIONS_PER_IMAGE * _fewest(images)) - 1
        if most < first:
            raise UserError(f"{candidates.folder}: a row has no candidate at rank offline.first={first}; run tagsds-mine for more.")
        raise UserError(
            f"{candidates.folder} has no candidates at rank offline.last={last} in every row; "
            f"set offline.last={most} or run tagsds-mine for more."
        )
    if last - first + 1 < count:
        raise UserError(
            f"{count} negatives of a pair cannot be drawn from ranks offline.first={first} to offline.last={last}; raise "
            f"offline.last or lower negatives.count (negatives.keep with offline.score=false)."
        )


def images_in_ranks(first: int, last: int) -> int:
    """Image ranks that go with the caption ranks first..last."""
    return last // CAPTIONS_PER_IMAGE - first // CAPTIONS_PER_IMAGE + 1


def _reaches(table: Tensor, rank: int) -> bool:
    return table.shape[1] > rank and bool((table[:, rank] >= 0).all())


def _fewest(table: Tensor) -> int:
    return int((table >= 0).sum(dim=1).min())


def check_whole(candidates: Candidates, bank: Bank) -> None:
    """Candidates number the whole split, so a bank that is a window of it will not do."""
    if (len(candidates.captions_of_image), len(candidates.images_of_caption)) != (bank.num_images, bank.num_captions):
        raise UserError(
            f"{candidates.folder} numbers {len(candidates.captions_of_image)} images but {bank.num_images} are in memory; "
            f"raise data.max_gib until the whole split fits, or use no offline candidates."
        )


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """The rows of a CPU table, int64 on the device of `index`."""
    return table[index.cpu()].to(index.device, torch.int64)


@dataclass(frozen=True)
class OfflineDraw:
    """int64 [B] each: T_off, I_off, T'_off (a caption of I_off), I'_off (the image of T_off)."""

    caption_off: Tensor
    image_off: Tensor
    other_caption: Tensor
    other_image: Tensor


def draw_quintuplet(
    candidates: Candidates, bank: Bank, captions: Tensor, first: int, last: int, generator: torch.Generator
) -> OfflineDraw:
    """Of each true pair: captions int64 [B]. One rank n, uniform in first..last, serves both: T_off is candidate n of the image,
    I_off candidate n // 5 of the caption. T'_off is uniform among the captions annotated for I_off."""
    check_whole(candidates, bank)
    size, device = len(captions), bank.device
    n = torch.randint(first, last + 1, (size, 1), generator=generator, device=device)
    caption_off = _rows(candidates.captions_of_image, bank.image_of_caption[captions]).gather(1, n)[:, 0]
    image_off = _rows(candidates.images_of_caption, captions).gather(1, n // CAPTIONS_PER_IMAGE)[:, 0]
    annotated = bank.captions_of_image.lengths[image_off]
    which = (torch.rand(size, generator=generator, device=device) * annotated).long().minimum(annotated - 1)  # may round up
    other_caption = bank.captions_of_image.values[bank.captions_of_image.offsets[image_off] + which]
    return OfflineDraw(caption_off, image_off, other_caption, bank.image_of_caption[caption_off])


def draw_from_ranks(
    candidates: Candidates, bank: Bank, captions: Tensor, count: int, first: int, last: int, generator: torch.Generator
) -> tuple[Hard, Hard]:
    """Images of each caption and captions of its image, `count` of each, distinct ranks: captions int64 [B] -> index [B, count].

    Captions come from ranks first..last, images from first // 5..last // 5; where these are fewer than `count`, all of them are
    taken, and the result is that much narrower. In no order. Ranks behind the end of a row are not valid.
    """
    check_whole(candidates, bank)

    def drawn(rows: Tensor, begin: int, end: int) -> Hard:
        order = torch.rand(len(rows), end - begin + 1, generator=generator, device=bank.device).argsort(dim=1)
        index = rows.gather(1, begin + order[:, :count])
        return Hard(index.clamp(min=0), index >= 0)

    images = drawn(
        _rows(candidates.images_of_caption, captions), first // CAPTIONS_PER_IMAGE, last // CAPTIONS_PER_IMAGE
    )
    own = bank.image_of_caption[captions]
    return images, drawn(_rows(candidates.captions_of_image, own), first, last)


def mine_offline(
    candidates: Candidates, bank: Bank, captions: Tensor, count: int, keep: int, first: int, last: int, scorer: Scorer, draw: Draw
) -> tuple[Hard, Hard]:
    """As `mine_random`, with `count` candidates in place of random ones: the `keep` hardest of each direction."""
    generator = draw.generator(bank.device, "offline negatives")
    images, others = draw_from_ranks(candidates, bank, captions, count, first, last, generator)
    return keep_hardest(bank, captions, images, others, keep, scorer)
