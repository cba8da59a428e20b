"""How fast `tagsds-mine` searches, on random unit vectors: pairs per second, peak memory, and what COCO would take.

    python tests/bench/mining.py [--threads 1] [--sizes 5000x25000 10000x50000] [--width 1024] [--output mining.json]

Every size runs in a process of its own, so that its peak memory is its own. A fraction of the query blocks is searched and the time
scaled up: all blocks cost the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tagsds.mine import KEYS, QUERIES
from tagsds.scoring.search import Stored, search

COCO = {"images": 113_287, "captions": 566_435, "width": 2048}
BLOCKS = 2  # query blocks that are timed in each direction


def vectors(folder: Path, name: str, count: int, width: int) -> list[Path]:
    """Unit vectors in files of 20,000, made and written one after the other."""
    files = []
    rng = np.random.default_rng(0)
    for start in range(0, count, 20_000):
        part = rng.standard_normal((min(20_000, count - start), width), dtype=np.float32)
        files.append(folder / f"{name}{start}.npy")
        np.save(files[-1], part / np.linalg.norm(part, axis=1, keepdims=True))
    return files


def measure(images: int, captions: int, width: int, backend: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        owners = torch.arange(captions) % images
        sides = (
            Stored(vectors(folder, "images", images, width), torch.arange(images), torch.device("cpu")),
            Stored(vectors(folder, "captions", captions, width), owners, torch.device("cpu")),
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def compare(a, b):
            return a.vectors[:, 0] @ b.vectors[:, 0].T

        pairs = seconds = 0.0
        for queries, keys, k in ((*sides, 2000), (*sides[::-1], 400)):
            for number in range(BLOCKS):
                start = number * QUERIES % max(1, len(queries.owners) - QUERIES)
                stop = min(start + QUERIES, len(queries.owners))
                begin = time.perf_counter()
                search(compare, queries, keys, start, stop, min(k, len(keys.owners)), KEYS, backend)
                seconds += time.perf_counter() - begin
                pairs += (stop - start) * len(keys.owners)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"pairs_per_s": pairs / seconds, "peak_gib": peak / 2**20, "peak_before_gib": before / 2**20}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=["5000x25000", "20000x100000"], metavar="IMAGESxCAPTIONS")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--backend", choices=("torch", "faiss"), default="torch")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.one:
        images, captions = map(int, args.one.split("x"))
        print(json.dumps(measure(images, captions, args.width, args.backend)))
        return
    rows = []
    for size in args.sizes:
        command = [sys.executable, __file__, "--one", size, "--threads", str(args.threads), "--width", str(args.width)]
        done = subprocess.run([*command, "--backend", args.backend], capture_output=True, text=True, check=True)
        rows.append({"size": size, "width": args.width, "backend": args.backend, **json.loads(done.stdout)})
        print(f"{size:>16} x {args.width}: {rows[-1]['pairs_per_s']:.3g} pairs/s, peak {rows[-1]['peak_gib']:.2f} GiB")
    speed = rows[-1]["pairs_per_s"] * args.width / COCO["width"]  # the products dominate
    hours = 2 * COCO["images"] * COCO["captions"] / speed / 3600
    blocks = (QUERIES + KEYS) * COCO["width"] * 4 + QUERIES * (KEYS + 4 * 2000) * 8
    files = (COCO["images"] + COCO["captions"]) * COCO["width"] * 4
    coco = {"hours": hours, "blocks_gib": blocks / 2**30, "files_gib": files / 2**30}
    print(
        f"COCO at width 2048, scaled: search {hours:.1f} h on {args.threads} CPU thread(s), blocks {coco['blocks_gib']:.2f} GiB "
        f"of memory, vectors {coco['files_gib']:.1f} GiB on disk"
    )
    if args.output:
        about = {"threads": args.threads, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
        args.output.write_text(json.dumps({**about, "rows": rows, "coco": coco}, indent=1))


if __name__ == "__main__":
    main()
