"""How a step grows: processor seconds of one thread a true pair, and peak memory, against one size at a time.

    python -m tests.bench.growth [--output growth.json] [--only negatives boxes]

Each point is a process of its own (a fork of one that has read its libraries), so that its peak memory is its own. A base size is
small, and one size is varied. To each series belong a straight line by least squares, seconds = a + b x, with its largest residual
as a share of the largest value, and the exponent p of seconds ~ x^p (by least squares of the logarithms); the same for memory.
`ms a GFLOP` says whether time follows the operations that cannot be avoided.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from tagsds.data.bank import Bank
from tests.bench import run
from tests.bench.operations import flop_of, recorded, sizes_of
from tests.bench.phases import peak_memory
from tests.bench.variants import Shape, Variants, corpus

BASE: dict[str, int] = {
    "negatives": 100, "words": 14, "boxes": 36, "layers": 3, "hidden": 64, "captions": 2, "keep": 8, "maskings": 4, "refills": 4,
}  # fmt: skip
SERIES: dict[str, tuple[int, ...]] = {
    "negatives": (50, 100, 200, 400, 800),
    "words": (8, 16, 32, 64),
    "boxes": (10, 25, 50, 100),
    "layers": (2, 4, 6, 8),
    "hidden": (32, 64, 128, 256),
}
UNITS = {"negatives": "random negatives each way", "words": "pieces of a caption", "boxes": "regions of an image",
         "layers": "layers", "hidden": "width"}  # fmt: skip
TINY: dict[str, tuple[int, ...]] = {"negatives": (4, 8), "hidden": (16, 32)}
TINY_BASE = BASE | {"negatives": 4, "layers": 2, "hidden": 16, "captions": 1, "keep": 2, "maskings": 2, "refills": 2}


def bank_of(sizes: dict[str, int]) -> Bank:
    """Images enough that no two captions of the step share a negative, all of one size."""
    images = 2 + sizes["captions"] * (sizes["negatives"] + 1)
    return corpus(images, Shape(boxes=(sizes["boxes"],) * 3, words=(sizes["words"],) * 2))


def point(sizes: dict[str, int], bank: Bank, repeats: int) -> dict[str, float]:
    """One measurement, in this process."""
    given = [f"--{name}={sizes[name]}" for name in ("captions", "keep", "maskings", "refills", "layers", "hidden")]
    variants = Variants(run.parse([*given, f"--count={sizes['negatives']}"]), bank)
    model, times = variants.model, []
    with peak_memory(torch.device("cpu")) as memory:
        for _ in range(repeats + 1):  # the first warms up
            model.zero_grad(set_to_none=True)
            begin = time.process_time()
            variants.ours().backward()
            times.append(time.process_time() - begin)
    with recorded(model) as calls:
        variants.ours()
    gflop = flop_of(calls, sizes_of(model), model.config.region_dim) / 1e9
    return {"seconds": min(times[1:]) / sizes["captions"], "gflop": gflop / sizes["captions"], "peak_mib": memory["peak_mib"]}


def apart(sizes: dict[str, int], bank: Bank, repeats: int) -> dict[str, float]:
    """`point` in a fork. One thread: what a parent's thread pool holds does not survive a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as out:
                out.write(json.dumps(point(sizes, bank, repeats)))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as source:
        text = source.read()
    if os.waitpid(child, 0)[1] or not text:
        raise SystemExit(f"the measurement at {sizes} ended without a result")
    return json.loads(text)


def line(x: list[float], y: list[float]) -> dict[str, float]:
    """y = a + b x by least squares: a, b, the largest residual over the largest y, and p of y ~ x^p."""
    slope, start = np.polyfit(x, y, 1)
    residual = np.abs(np.asarray(y) - start - slope * np.asarray(x)).max() / max(y)
    positive = min(x) > 0 and min(y) > 0
    power = float(np.polyfit(np.log(x), np.log(y), 1)[0]) if positive else 0.0
    return {"a": float(start), "b": float(slope), "residual": float(residual), "power": power}


def measure(series: dict[str, tuple[int, ...]], base: dict[str, int], repeats: int) -> list[dict[str, Any]]:
    found = []
    for name, values in series.items():
        points, banks = [], {}
        for value in values:
            sizes = base | {name: value}
            key = (sizes["negatives"], sizes["words"], sizes["boxes"])
            banks = {key: banks[key] if key in banks else bank_of(sizes)}
            points.append({"x": value, **apart(sizes, banks[key], repeats)})
        x = [float(p["x"]) for p in points]
        fits = {of: line(x, [p[of] for p in points]) for of in ("seconds", "peak_mib", "gflop")}
        found.append({"name": name, "unit": UNITS[name], "points": points, "fits": fits})
        show(found[-1])
    return found


def show(row: dict[str, Any]) -> None:
    print(f"{row['unit']:28} {'ms a true pair':>15} {'GFLOP':>8} {'ms a GFLOP':>11} {'peak MiB':>9}")
    for p in row["points"]:
        ms = 1000 * p["seconds"]
        print(f"{p['x']:28} {ms:15.1f} {p['gflop']:8.2f} {ms / p['gflop']:11.2f} {p['peak_mib']:9.0f}")
    time_fit, memory = row["fits"]["seconds"], row["fits"]["peak_mib"]
    print(
        f"  time = {1000 * time_fit['a']:.3g} + {1000 * time_fit['b']:.3g} x ms, residual {time_fit['residual']:.0%}, "
        f"~ x^{time_fit['power']:.2f}; memory = {memory['a']:.3g} + {memory['b']:.3g} x MiB, residual {memory['residual']:.0%}",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERIES, help="of the series (default: all)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two short series, to see that it runs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    args.device = "cpu"
    torch.set_num_threads(1)
    every, base = (TINY, TINY_BASE) if args.tiny else (SERIES, BASE)
    found = measure({name: every[name] for name in args.only or every}, base, args.repeats)
    if args.output:
        args.output.write_text(json.dumps({"about": run.about(args), "base": base, "series": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
