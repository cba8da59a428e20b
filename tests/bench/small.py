"""Optimiser steps a second at the sizes of `make demo` and `make coco-boxes`, without DeepSpeed: one thread, one process.

    python -m tests.bench.small [--profile] [--output small.json]

A step is the objective's forward, backward, the norm's clipping and AdamW, on a corpus in memory of the demo's shape. Each case
runs with the package's kernels and with their references in turn (tests/bench/switch.py); a package without kernels has references
only. `--profile` adds the dearest operations of each case.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tagsds.config import load_config
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.malloc import keep_freed_memory
from tagsds.models import UniterConfig, UniterModel
from tagsds.objectives import OBJECTIVES
from tagsds.scoring.scorer import Scorer
from tests.bench import run
from tests.bench.switch import names, references
from tests.bench.variants import Shape, corpus

WORLD = Shape((1, 3.5, 5), (5, 22), 192, 64, Vocabulary(size=222, pad=0, unk=1, cls=2, sep=3, mask=4))
BOXES = Shape((1, 7, 30), (8, 20), 64, 80, Vocabulary(size=6000, pad=0, unk=1, cls=2, sep=3, mask=4))
# case -> the recipe of the step, the recipe that holds the model's sizes, and the corpus
CASES: dict[str, tuple[str, str, Shape]] = {
    "world, pre-training": ("world-pretrain", "world-pretrain", WORLD),
    "world, TAGS stage 1": ("world-tags", "world-pretrain", WORLD),
    "COCO boxes, pre-training": ("coco-boxes-pretrain", "coco-boxes-pretrain", BOXES),
    "COCO boxes, TAGS stage 1": ("coco-boxes-tags", "coco-boxes-pretrain", BOXES),
}


def stepper(case: str, images: int) -> tuple[Callable[[int], None], dict[str, Any]]:
    """(one optimiser step by its number, sizes for the row)."""
    recipe, sized, shape = CASES[case]
    config, sizes = load_config(recipe), load_config(sized).model
    bank = corpus(images, shape)
    torch.manual_seed(1)
    model = UniterModel(UniterConfig(
        vocab_size=shape.vocab.size, hidden_size=sizes.hidden_size, num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads, intermediate_size=sizes.intermediate_size, region_dim=shape.width,
        num_region_classes=shape.classes, hidden_dropout_prob=config.model.dropout,
        attention_probs_dropout_prob=config.model.attention_dropout, initializer_range=sizes.initializer_range,
    )).train()  # fmt: skip
    objective = OBJECTIVES[config.objective](model, config, shape.vocab, Scorer(model))
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.optimiser.lr, fused=True)

    def step(number: int) -> None:
        random = torch.Generator().manual_seed(number)
        captions = torch.randperm(bank.num_captions, generator=random)[: config.batch.pairs]
        objective(bank, captions, Draw(1, number, 0)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimiser.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step, {"pairs": config.batch.pairs, "hidden": sizes.hidden_size, "layers": sizes.num_hidden_layers}


def measure(case: str, images: int, steps: int) -> list[dict[str, Any]]:
    """Both kinds of kernels in turns of ten steps; the same steps, since tasks of pre-training differ in cost."""
    step, sizes = stepper(case, images)
    kinds: dict[str, Callable[[], Any]] = {"default": nullcontext} if names() else {}
    kinds["references"] = references
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    block = min(10, steps)
    for first in range(-block, steps, block):  # the first block warms up
        for kind, context in kinds.items():
            with context():
                begin = time.process_time()
                for number in range(first, first + block):
                    step(number + block)
                if first >= 0:
                    taken[kind].append((time.process_time() - begin) / block)
    return [
        {"case": case, "kernels": kind, **sizes, "seconds": median(times), "steps_per_s": 1 / median(times),
         "spread": (max(times) - min(times)) / median(times)}
        for kind, times in taken.items()
    ]  # fmt: skip


def profiled(case: str, images: int, steps: int = 10) -> str:
    step, _ = stepper(case, images)
    step(0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for number in range(1, steps + 1):
            step(number)
    return profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of each case and kind of kernels (default 60)")
    parser.add_argument("--images", type=int, default=1000, help="of the corpus (default 1000)")
    parser.add_argument("--only", nargs="+", choices=CASES, help="of the cases (default: all)")
    parser.add_argument("--profile", action="store_true", help="print the dearest operations of each case")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    args.device = "cpu"
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does
    rows: list[dict[str, Any]] = []
    print(f"{'':28} {'kernels':12} {'steps/s':>8} {'ms/step':>8} {'spread':>7}")
    for case in args.only or CASES:
        rows += measure(case, args.images, args.steps)
        for row in rows[-2:] if names() else rows[-1:]:
            print(
                f"{case:28} {row['kernels']:12} {row['steps_per_s']:8.2f} {1000 * row['seconds']:8.1f} {row['spread']:7.0%}",
                flush=True,
            )
        if args.profile:
            print(profiled(case, args.images))
    print("seconds of the processor, one thread" + ("" if names() else "; this package has no kernels of its own, only references"))
    if args.output:
        args.output.write_text(json.dumps({"about": run.about(args), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
