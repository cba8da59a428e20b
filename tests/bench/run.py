"""The scorer and one TAGS-DC step: in their precisions, against the plain step, and with one saving or kernel taken out at a time.

    python tests/bench/run.py [--preset issue] [--threads 1] [--rows REGEX] [--output bench.json]

The corpus is random with COCO's shape: 10 to 100 regions of width 2048 an image, five captions of 10 to 22 pieces. Forward and
backward are timed without the optimiser's step. Rows take turns, so that a busy machine harms all alike. The first run of a row
warms up and the median of --repeats further ones counts; of a row that takes longer than --long seconds the first counts. Columns:

    s/pair    seconds a true pair (a step), or a scored pair (the scorer)
    ratio     of that to the package's row, the first of its kind
    GFLOP     operations that cannot be avoided (tests/bench/operations.py): of the row itself, or, for a row that computes the
              same losses with more work, of the package's row
    share     of the rate of matrix products, measured in the same run at the same shapes (tests/bench/rates.py): the seconds that
              the operations take at that rate, over the row's seconds
    spread    (longest - shortest) / median; '-' after one run
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers

from tagsds.malloc import keep_freed_memory
from tests.bench.operations import flop_of, sizes_of, table
from tests.bench.rates import Rates
from tests.bench.rows import Row, rows

SIZES = (
    ("captions", 4, "true pairs of the micro-batch"), ("images", 300, "images of the corpus"),
    ("count", 99, "random negatives each way"), ("keep", 8, "K, the hardest of them"),
    ("maskings", 6, "of a caption"), ("refills", 6, "of a masking"),
    ("hidden", 192, "width"), ("layers", 4, "at least 2"), ("heads", 4, "of attention"), ("threads", 1, "of a CPU"),
    ("vocabulary", 28996, "word pieces"), ("features", 2048, "width of a region's feature"),
)  # fmt: skip
PRESETS: dict[str, dict[str, int]] = {
    "small": {},
    "issue": {  # the published step's counts, at a width that a CPU finishes
        "images": 2000, "count": 399, "keep": 31, "maskings": 20, "refills": 20, "hidden": 256, "threads": 2,
    },
    "base": {  # UNITER-base
        "images": 2000, "count": 399, "keep": 31, "maskings": 20, "refills": 20, "hidden": 768, "layers": 12, "heads": 12,
    },
    "tiny": {
        "captions": 2, "images": 12, "count": 5, "keep": 2, "maskings": 2, "refills": 2, "hidden": 16, "layers": 2, "heads": 2,
        "vocabulary": 400, "features": 64,
    },
}  # fmt: skip


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def about(args: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    ).stdout.strip()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit or "unknown",
        "machine": machine(torch.device(args.device)),
        "load": round(os.getloadavg()[0], 1),  # processes that were running or waiting over the last minute
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output"},
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="sizes, which the options below change (default small)")
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    parser.add_argument("--rows", default="", help="regular expression: only rows whose name it finds, and the first of a kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default fp32)")
    parser.add_argument("--dropout", type=float, default=0.0, help="of states and attention, in all rows (default 0)")
    parser.add_argument("--repeats", type=int, default=3, help="(default 3)")
    parser.add_argument("--long", type=float, default=20.0, help="seconds; rows that take longer run once (default 20)")
    for name, default, text in SIZES:
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    preset = parser.parse_known_args(argv)[0].preset
    parser.set_defaults(**PRESETS[preset])
    return parser.parse_args(argv)


def seconds_of(once: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of one run, and what it returned."""
    _wait(device)
    begin = time.perf_counter()
    value = once()
    _wait(device)
    return time.perf_counter() - begin, value


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def chosen(every: list[Row], pattern: str) -> list[Row]:
    """The rows that `pattern` finds; the first of a kind stays where another of it does, since ratios are to it."""
    found = [row for row in every if re.search(pattern, row.name)]
    kinds = {row.kind for row in found}
    firsts = [next(row for row in every if row.kind == kind) for kind in sorted(kinds)]
    return [row for row in every if row in found or row in firsts]


def measure(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and the lines that tell the operations of the package's step."""
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        timed = chosen(rows(args, Path(folder)), args.rows)
        taken: list[list[float]] = []
        values: list[float] = []
        for row in timed:
            seconds, value = seconds_of(row.first, device)
            row.model.zero_grad(set_to_none=True)
            taken.append([seconds])
            values.append(value)
        for _ in range(args.repeats):
            for row, times in zip(timed, taken, strict=True):
                if times[0] < args.long:
                    times.append(seconds_of(row.once, device)[0])
                    row.model.zero_grad(set_to_none=True)
    taken = [times[1:] or times for times in taken]
    rates, found = Rates(device, least_s=0.0 if args.preset == "tiny" else 0.05), []
    first: dict[str, tuple[Row, float]] = {}
    for row, times, value in zip(timed, taken, values, strict=True):
        seconds = median(times)
        first.setdefault(row.kind, (row, seconds))
        counted = row if row.counted else first[row.kind][0]
        precise = row.calls[0].precision if row.calls else counted.calls[0].precision
        calls = counted.calls if row.counted else [replace(call, precision=precise) for call in counted.calls]
        sizes, width = sizes_of(row.model), row.model.config.region_dim
        flop, ideal = flop_of(calls, sizes, width), rates.ideal_seconds(calls, sizes, width)
        found.append({
            "variant": row.name, "kind": row.kind, "seconds": seconds, "units": row.units, "per_unit": seconds / row.units,
            "ratio": seconds / first[row.kind][1], "gflop": flop / 1e9, "share": ideal / seconds,
            "rate": flop / ideal / 1e9, "spread": (max(times) - min(times)) / seconds, "loss": value, "all": times,
        })  # fmt: skip
    step = first.get("step", next(iter(first.values())))[0]
    return found, table(step.calls, sizes_of(step.model), step.model.config.region_dim)


def show(facts: dict[str, Any], found: list[dict[str, Any]], operations: list[str]) -> None:
    print("  ".join(f"{key} {value}" for key, value in facts.items() if key != "settings"))
    print("  ".join(f"{key}={value}" for key, value in facts["settings"].items()))
    print("\n".join(operations))
    columns = f"{'s/pair':>10} {'pairs/s':>9} {'ratio':>6} {'GFLOP':>8} {'share':>6} {'GFLOP/s':>8} {'spread':>7} {'loss':>10}"
    print(f"{'':58} {columns}")
    for row in found:
        spread = f"{row['spread']:.0%}" if len(row["all"]) > 1 else "-"
        print(
            f"{row['variant']:58} {row['per_unit']:10.3g} {1 / row['per_unit']:9.4g} {row['ratio']:6.2f} {row['gflop']:8.1f} "
            f"{row['share']:6.0%} {row['rate']:8.0f} {spread:>7} {row['loss']:10.6f}"
        )
    print("ratio: to the first row of its kind; share: of the rate of matrix products in this run (GFLOP/s)")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as a run does
    found, operations = measure(args)
    facts = about(args)
    show(facts, found, operations)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"about": facts, "rows": found, "operations": operations}, indent=1) + "\n")


if __name__ == "__main__":
    main()
