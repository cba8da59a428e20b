"""Offline hard negatives: the most similar captions of each training image and images of each caption, by a trained matcher,
exactly (AOQ, arXiv 2003.03669).

    tagsds-mine --checkpoint RUN --data SHARDS [--captions 2000] [--images 400]
    torchrun --nproc-per-node 8 -m tagsds.mine --checkpoint ...

Vectors are made shard by shard and kept in files; the search reads them block by block, and a killed run goes on where it was. One
pass over blocks of images serves both directions: each product is computed once, the captions of an image are found block by block,
and the images of a caption gather in memory (2.5 GiB a process for COCO's 566,435 captions at 400 images each; 1.7 GiB of it are
written from time to time, for a run that goes on). Where that exceeds --tops-gib, each direction is searched by itself in a memory
that does not grow with the corpus, and every product is computed twice.
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file (`deepspeed tagsds/mine.py`): imports start at the repository
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tagsds.data.shards import load_bank, load_shards
from tagsds.errors import UserError, check_whole
from tagsds.files import check_exist, join_npy, map_npy, read_json_object, sha256_of, write_json, write_npy
from tagsds.formats.candidates import AGAIN, TABLES, check_numbers, write_manifest
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config
from tagsds.models.matchers import Matcher
from tagsds.ranks import World, run_command
from tagsds.scoring.mining import MOST_TOPS, QUERIES, comparison, keys_of_block
from tagsds.scoring.protocol import model_class
from tagsds.scoring.registry import SCORERS
from tagsds.scoring.search import Compare, Live, Store, Stored, bytes_of_tops, dot, search
from tagsds.scoring.tops import KeptTops


class Mining:
    """One run of the command: what it was asked for, and where its parts lie."""

    def __init__(self, options: argparse.Namespace, world: World) -> None:
        self.world, self.device, self.options = world, world.device, options
        self.checkpoint, home = find_checkpoint(options.checkpoint)
        self.manifest: Manifest = read_manifest(options.data)
        self.shards = self.manifest.shards(options.split)
        config = read_config(self.checkpoint)
        if not SCORERS[model_class(config).scored_by].encodes_apart:
            raise UserError(
                f"{self.checkpoint} is an encoder, which scores every pair anew; mine with a matcher (recipe vsrn-coco), whose "
                "candidates the encoder re-orders in training (offline.remine_every)."
            )
        check_data(config, self.checkpoint, self.manifest)
        counts = self.manifest.splits[options.split]
        self.images, self.captions = counts["images"], counts["captions"]
        check_numbers(self.manifest.folder, options.split, self.captions)
        self.widths = min(options.captions, self.captions - 1), min(options.images, self.images - 1)
        if min(self.widths) < 1:
            raise UserError(f"{options.data}: split '{options.split}' has {self.images} images; mining needs two at least.")
        if self.widths != (options.captions, options.images):
            kept = f"{self.widths[0]} captions an image and {self.widths[1]} images a caption"
            self.say(f"'{options.split}' holds {self.captions} captions of {self.images} images: keeping {kept}")
        self.folder = options.output or Path(options.data) / "candidates" / home.resolve().name
        self.parts = self.folder / "parts"
        self.block_keys = options.block_keys or keys_of_block(self.device)
        check_exist([self.checkpoint / "model.safetensors"])
        self.settings = {
            "checkpoint_sha256": sha256_of(self.checkpoint / "model.safetensors"),
            "data_sha256": sha256_of(self.manifest.folder / "manifest.json"),
            "split": options.split,
            "captions_per_image": self.widths[0],
            "images_per_caption": self.widths[1],
        }

    def say(self, text: str) -> None:
        if self.world.is_main:
            tqdm.write(text)

    def finished(self) -> bool:
        """Whether the folder is whole already; UserError where it is something else's."""
        whole = self.folder / "candidates.json"
        begun = self.parts / "settings.json"
        for path in (whole, begun):
            if path.is_file():
                found = read_json_object(path, f"remove {self.folder} or name another --output")
                for key, value in self._all_settings(path == begun).items():
                    if found.get(key) != value:
                        raise UserError(
                            f"{path} has {key} {found.get(key)} where this run has {value}; name another --output, or remove "
                            f"{self.folder}."
                        )
        return whole.is_file()

    def _all_settings(self, parts: bool) -> dict[str, Any]:
        return {**self.settings, "block_queries": self.options.block_queries} if parts else self.settings

    def run(self) -> None:
        if self.finished():
            self.say(f"{self.folder} holds these candidates already; nothing to do")
            return
        self.world.wait()  # all have looked before the first writes
        if self.world.is_main:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_json(self.parts / "settings.json", self._all_settings(True))
        self.world.wait()
        begin = time.perf_counter()
        model: Matcher = load_model(self.checkpoint)
        torch.nn.Module.to(model, self.device)
        stores = self.live(model) if model.vectors is None else self.vectors(model.vectors)
        embedded = time.perf_counter()
        passes = self.search(model, stores)
        searched = time.perf_counter()
        if self.world.is_main:
            for name, rows, width in zip(TABLES, (self.images, self.captions), self.widths, strict=True):
                parts = [(self.part(name, start), stop - start) for start, stop in self.blocks(rows)]
                join_npy(self.folder / f"{name}.npy", parts, width, np.int32, f"remove {self.parts} and {AGAIN}")
            about = {"checkpoint": str(self.options.checkpoint), "checkpoint_sha256": self.settings["checkpoint_sha256"],
                     "passes": passes, "seconds": {"vectors": embedded - begin, "search": searched - embedded},
                     "ranks": self.world.size, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
            write_manifest(self.folder, self.manifest, self.options.split, self.widths, about)
            shutil.rmtree(self.parts)
            pairs = self.images * self.captions
            self.say(
                f"{self.folder}: {self.widths[0]} captions of each of {self.images} images, {self.widths[1]} images of each of "
                f"{self.captions} captions; vectors {embedded - begin:.1f} s, search {searched - embedded:.1f} s "
                f"({pairs / max(searched - embedded, 1e-9):.3g} pairs/s for both directions, in {passes} pass{'es' * (passes - 1)})"
            )
        self.world.wait()

    def blocks(self, rows: int) -> list[tuple[int, int]]:
        size = self.options.block_queries
        return [(start, min(start + size, rows)) for start in range(0, rows, size)]

    def part(self, name: str, start: int) -> Path:
        return self.parts / f"{name}-{start:09d}.npy"

    @torch.no_grad()
    def vectors(self, embed: Callable[..., Tensor]) -> tuple[Store, Store]:
        """The vector of every image and caption, shard by shard, in files; and whose caption each is."""
        numbers = range(self.world.rank, len(self.shards), self.world.size)
        first_image = np.cumsum([0, *(shard["samples"] for shard in self.shards)])
        for number in tqdm(numbers, desc="vectors", unit="shard", disable=not self.world.is_main):
            names = [self.part(kind, number) for kind in ("image", "caption", "owner")]
            if all(name.is_file() for name in names):
                continue
            bank = load_shards(self.manifest, [self.shards[number]], classes=False).to(self.device)
            of_images = [embed(images=bank.image_table(rows)) for rows in _rows(bank.num_images, bank.device)]
            of_captions = [embed(captions=bank.text_table(rows)) for rows in _rows(bank.num_captions, bank.device)]
            arrays = torch.cat(of_images), torch.cat(of_captions), bank.image_of_caption + int(first_image[number])
            if not all(bool(array.isfinite().all()) for array in arrays):
                shard = self.shards[number]["file"]
                raise UserError(f"{self.checkpoint} gives NaN or infinity on {shard}; train it again with a lower optimiser.lr.")
            for name, array in zip(names, arrays, strict=True):
                write_npy(name, array.cpu().numpy())
        self.world.wait()
        shards = range(len(self.shards))
        again, counted = f"remove {self.parts} and run the command again", [shard["captions"] for shard in self.shards]
        owners = np.concatenate([map_npy(self.part("owner", n), np.int64, (counted[n],), again) for n in shards])
        if not 0 <= int(owners.min()) <= int(owners.max()) < self.images:
            raise UserError(f"{self.parts} numbers images of which the split has none; {again}.")
        images = Stored([self.part("image", n) for n in shards], torch.arange(self.images, device=self.device), self.device)
        owner = torch.from_numpy(owners).to(self.device)
        return images, Stored([self.part("caption", n) for n in shards], owner, self.device)

    def live(self, model: Matcher) -> tuple[Store, Store]:
        """A matcher without vectors (SCAN, BFAN): the corpus stays in memory, and fragments are compared, which is slow."""
        self.say(f"{type(model).__name__} compares fragments: the whole corpus is kept in memory, and the search takes long")
        bank, _ = load_bank(self.options.data, self.options.split, progress=self.world.is_main, classes=False)
        bank = bank.to(self.device)
        return Live(model, bank, True), Live(model, bank, False)

    def search(self, model: Matcher, stores: tuple[Store, Store]) -> int:
        """Rows of both tables, a block a file; returns how often each product was computed."""
        tops = bytes_of_tops(self.captions, self.widths[1], self.device) / 2**30
        passes = 1 if tops <= self.options.tops_gib else 2
        if passes == 1:
            self.search_once(model.compare if model.vectors is None else dot, stores)
        else:
            self.say(f"running tops take {tops:.1f} GiB, more than --tops-gib {self.options.tops_gib:g}: searching each direction")
            for of_images, keys in ((True, stores[1]), (False, stores[0])):
                compare = comparison(model, of_images) if model.vectors is None else dot
                for start, stop in self.todo(TABLES[not of_images], self.images if of_images else self.captions):
                    queries, k = stores[not of_images], self.widths[not of_images]
                    found = search(compare, queries, keys, start, stop, k, self.block_keys)
                    write_npy(self.part(TABLES[not of_images], start), found)
        self.world.wait()
        return passes

    def search_once(self, compare: Compare, stores: tuple[Store, Store]) -> None:
        """Both directions from one computation of each product. Each rank takes blocks of images, and its tops of all captions are
        merged with the other ranks' in the end."""
        tops = KeptTops(self.parts, self.captions, self.widths[1], self.world)
        blocks = self.blocks(self.images)
        left = self.world.share(torch.tensor([block for block in blocks if block[0] not in tops.done]).view(-1, 2)).tolist()
        for start, stop in tqdm(left, desc=TABLES[0], unit="block", disable=not self.world.is_main):
            found = search(compare, *stores, start, stop, self.widths[0], self.block_keys, tops.highest)
            write_npy(self.part(TABLES[0], start), found)
            tops.took(start)
        tops.finish([start for start, _ in blocks])
        for start, stop in self.todo(TABLES[1], self.captions):
            write_npy(self.part(TABLES[1], start), tops.merged(start, stop).numpy())

    def todo(self, name: str, rows: int) -> Iterator[tuple[int, int]]:
        """This rank's blocks of a table whose files are not there."""
        share = self.world.share(torch.tensor(self.blocks(rows))).tolist()
        for start, stop in tqdm(share, desc=name, unit="block", disable=not self.world.is_main):
            if not self.part(name, start).is_file():
                yield start, stop


def _rows(count: int, device: torch.device, block: int = 512) -> Sequence[Tensor]:
    return torch.arange(count, device=device).split(block)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tagsds-mine", description="Offline hard negatives by a trained matcher, exactly.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a matcher's training run, or a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of packed shards")
    parser.add_argument("--split", default="train")
    parser.add_argument("--captions", type=int, default=2000, metavar="K", help="kept of each image")
    parser.add_argument("--images", type=int, default=400, metavar="K", help="kept of each caption")
    parser.add_argument("--output", type=Path, help="folder of the candidates (otherwise SHARDS/candidates/<name of the run>)")
    parser.add_argument("--block-queries", type=int, default=QUERIES, metavar="N", help="of a block; less memory, same result")
    parser.add_argument("--block-keys", type=int, metavar="N", help="of a block (by device)")
    parser.add_argument("--tops-gib", type=float, default=MOST_TOPS, metavar="GIB",
                        help="most memory of a process for running tops; above it two passes are made")  # fmt: skip
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.tops_gib >= 0:
        raise UserError(f"--tops-gib is {options.tops_gib}; give GiB, 0 or more.")
    check_whole(options, "captions", "images", "block_queries", "block_keys")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """tagsds-mine."""
    run_command(lambda: parse_arguments(arguments), lambda options, world: Mining(options, world).run())


if __name__ == "__main__":
    main()
