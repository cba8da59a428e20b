"""One TAGS-DC step against the plain one, and against itself with one saving taken out at a time, in one run.

    python tests/bench/run.py [--threads 1] [--output bench.json]

The corpus is random with COCO's shape: 10 to 100 regions of width 2048 an image, five captions of 8 to 22 pieces.
`ratio` is seconds / seconds of the package's step. Dropout is off, and forward and backward are timed without the
optimiser's step. Variants take turns, so that a busy machine harms all alike; the median over --repeats counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from tagsds.models import UniterModel
from tests.bench.variants import Variants


def seconds_of(step: Callable[[], Tensor], model: UniterModel, device: torch.device) -> float:
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    _wait(device)
    begin = time.perf_counter()
    step().backward()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": {k: v for k, v in vars(args).items() if k != "output"},
    }


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default fp32)")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU (default 1)")
    parser.add_argument("--repeats", type=int, default=3, help="(default 3)")
    for name, default, text in (
        ("captions", 4, "true pairs of the micro-batch"), ("images", 300, "images of the corpus"),
        ("count", 99, "random negatives each way"), ("keep", 8, "K, the hardest of them"),
        ("maskings", 6, "of a caption"), ("refills", 6, "of a masking"),
        ("hidden", 192, "width"), ("layers", 4, "at least 2"), ("heads", 4, "of attention"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    variants = Variants(args)
    with tempfile.TemporaryDirectory() as folder:
        steps = variants.steps(Path(folder))
        losses = {name: float(step().detach()) for name, step in steps.items()}  # warms up, too
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.repeats):
            for name, step in steps.items():
                taken[name].append(seconds_of(step, variants.model, variants.device))
    base = median(taken["ours"])
    rows = [
        {"variant": name, "seconds": median(times), "ratio": median(times) / base, "loss": losses[name], "all": times}
        for name, times in taken.items()
    ]
    facts = about(args)
    print("  ".join(f"{key} {value}" for key, value in facts.items() if key != "settings"))
    print("  ".join(f"{key}={value}" for key, value in facts["settings"].items()))
    print(f"{'':42} {'s/step':>8} {'ratio':>7} {'spread':>7} {'loss':>10}")
    for row in rows:
        spread = (max(row["all"]) - min(row["all"])) / row["seconds"]
        print(f"{row['variant']:42} {row['seconds']:8.3f} {row['ratio']:7.2f} {spread:7.0%} {row['loss']:10.6f}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"about": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
