"""How fast `tagsds-mine` searches, on random unit vectors: both directions in one pass, against the rate of bare products.

    chrt -f 1 python tests/bench/mining.py [--threads 2] [--size 11329x56644] [--width 2048] [--output mining.json]

The default is a tenth of COCO in each direction, so COCO has 100 times the pairs, by which the time is scaled: products are 97 % of
the operations there. What is scaled is an upper estimate: 2,000 captions an image and 400 images a caption are kept as for COCO,
which is ten times the share of the small corpus (a score passes the bar about six times as often), and what is done once a row
(sorting, writing) grows by 10 and not by 100.

The time holds what the command does after the vectors are made: reading them, products, selection and the files of both
tables. The rate of bare products of the same blocks is measured before and after;
where other jobs run on the machine, the share by CPU seconds says more than the one by time.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tagsds.files import write_npy
from tagsds.kernels import choice
from tagsds.kernels.select import dot_products
from tagsds.ranks import World
from tagsds.scoring.mining import QUERIES, keys_of_block
from tagsds.scoring.search import Stored, bytes_of_tops, dot, search
from tagsds.scoring.tops import KeptTops
from tests.bench.run import about

KEYS = keys_of_block(torch.device("cpu"))
COCO = {"images": 113_287, "captions": 566_435, "width": 2048}
KEPT = 2000, 400  # captions an image, images a caption


def vectors(folder: Path, name: str, count: int, width: int) -> list[Path]:
    """Unit vectors in files of 20,000, made and written one after the other."""
    files = []
    rng = np.random.default_rng(0 if name == "images" else 1)
    for start in range(0, count, 20_000):
        part = rng.standard_normal((min(20_000, count - start), width), dtype=np.float32)
        files.append(folder / f"{name}{start}.npy")
        np.save(files[-1], part / np.linalg.norm(part, axis=1, keepdims=True))
    return files


def product_rate(queries: int, keys: int, width: int, repeats: int = 4) -> tuple[float, float]:
    """GFLOP/s of bare products of the search's blocks, and GFLOP a CPU second."""
    x, y = torch.randn(queries, width), torch.randn(keys, width)
    dot_products(x, y)
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        dot_products(x, y)
    done = repeats * 2e-9 * queries * keys * width
    return done / (time.perf_counter() - begin), done / (time.process_time() - cpu)


def measure(images: int, captions: int, width: int) -> dict[str, Any]:
    """One search of both directions, as `tagsds-mine` makes it."""
    choice.compiled()  # compiled before the clock runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cpu = torch.device("cpu")
        stores = (
            Stored(vectors(folder, "images", images, width), torch.arange(images), cpu),
            Stored(vectors(folder, "captions", captions, width), torch.arange(captions) % images, cpu),
        )
        block = min(QUERIES, images), min(KEYS, captions), width
        rates = [product_rate(*block)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        k, of_caption = min(KEPT[0], captions), min(KEPT[1], images)
        begin, used = time.perf_counter(), time.process_time()
        tops = KeptTops(folder, captions, of_caption, World())
        for start in range(0, images, QUERIES):
            stop = min(start + QUERIES, images)
            write_npy(folder / f"row{start}.npy", search(dot, *stores, start, stop, k, KEYS, tops.highest))
            tops.took(start)
        searched = time.perf_counter()
        tops.finish(range(0, images, QUERIES))
        for start in range(0, captions, QUERIES):
            write_npy(folder / f"column{start}.npy", tops.merged(start, min(start + QUERIES, captions)).numpy())
        end, used = time.perf_counter(), time.process_time() - used
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rates.append(product_rate(*block))
        pairs, rate, of_cpu = images * captions, (rates[0][0] + rates[1][0]) / 2, (rates[0][1] + rates[1][1]) / 2
        reached = 2e-9 * pairs * width / (end - begin)
        return {
            "images": images, "captions": captions, "width": width, "kept": [k, of_caption], "compiled": choice.compiled(),
            "seconds": end - begin, "of which the tops of captions": end - searched, "pairs_per_s": pairs / (end - begin),
            "gflops": reached, "gflops_of_products": [rate for rate, _ in rates], "share_of_products": reached / rate,
            "cpu_seconds": used, "share_of_products_by_cpu_seconds": 2e-9 * pairs * width / used / of_cpu,
            "peak_gib": peak / 2**20, "peak_before_gib": before / 2**20,
        }  # fmt: skip


def coco(row: dict[str, Any]) -> dict[str, float]:
    """The search of COCO, scaled by pairs and width, and what it needs."""
    pairs = COCO["images"] * COCO["captions"] / (row["images"] * row["captions"])
    blocks = (QUERIES + 2 * KEYS) * COCO["width"] * 4 + QUERIES * KEYS * 4 + bytes_of_tops(QUERIES, KEPT[0], torch.device("cpu"))
    return {
        "scaled_by": pairs * COCO["width"] / row["width"],
        "hours": row["seconds"] * pairs * COCO["width"] / row["width"] / 3600,
        "cpu_hours": row["cpu_seconds"] * pairs * COCO["width"] / row["width"] / 3600,
        "blocks_gib": blocks / 2**30,
        "tops_gib": bytes_of_tops(COCO["captions"], KEPT[1], torch.device("cpu")) / 2**30,
        "files_gib": (COCO["images"] + COCO["captions"]) * COCO["width"] * 4 / 2**30,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="11329x56644", metavar="IMAGESxCAPTIONS")
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--note", default="", help="about the machine, kept with the row")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    images, captions = map(int, args.size.split("x"))
    row = measure(images, captions, args.width)
    scaled = coco(row)
    print(
        f"{args.size} x {args.width} in {row['seconds']:.1f} s, both directions: {row['pairs_per_s']:.3g} pairs/s, "
        f"{row['gflops']:.0f} GFLOP/s of {sum(row['gflops_of_products']) / 2:.0f} of bare products "
        f"({row['share_of_products']:.0%}; by CPU seconds {row['share_of_products_by_cpu_seconds']:.0%}), "
        f"peak {row['peak_gib']:.2f} GiB"
    )
    print(
        f"COCO at width 2048, scaled by {scaled['scaled_by']:.0f}: {scaled['hours']:.2f} h on {args.threads} CPU thread(s), "
        f"{scaled['cpu_hours']:.2f} CPU hours; "
        f"{scaled['blocks_gib']:.2f} GiB of blocks and {scaled['tops_gib']:.1f} GiB of running tops in memory, vectors "
        f"{scaled['files_gib']:.1f} GiB on disk"
    )
    if args.output:
        facts = about(Namespace(**vars(args), device="cpu"))
        args.output.write_text(json.dumps({"about": facts, "rows": [row], "coco": scaled}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
