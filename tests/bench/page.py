"""Tables of the benchmark's newest rows: docs/results/speed.md.

    python -m tests.bench.page docs/results/speed.md

The rows are the parts of the files in benchmarks/ (`tests/bench/speed.py`, `tests/bench/gpu.py`); of each part the newest counts. A
test holds the page against them.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# what a row's name means, by its beginning; the first that fits counts
MEANINGS = {
    "scorer, fp32 weights, autocast": "scoring with `negatives.dtype=bf16`: weights stay in fp32, products are in bf16",
    "scorer, weights in": "scoring with a model whose weights have that precision",
    "scorer, padded": "each chunk padded to its longest pair, in the order of the pairs; PyTorch's own products and norms",
    "scorer, kernels": "scoring with all kernels replaced by their references",
    "scorer, kernel": "scoring with one kernel replaced by its reference in torch",
    "scorer": "the package's scorer alone: the random pairs of the step, both directions, no gradient, [CLS] alone",
    "ours, dropout": "the package's step with dropout of states and attention in the forward with a gradient",
    "ours, weights": "the package's step with weights of that precision",
    "ours": "the package's step: draw, score, write, filter, one forward with a gradient, backward; dropout off",
    "plain, attention written out": "the plain step with softmax(QK^T)V as separate products and its probabilities in memory, as "
    "the released code has it",
    "plain": "the same losses the plain way (tests/bench/plain_step.py): one caption a batch, padded; fused attention",
    "option: bf16": "`negatives.dtype=bf16`: random and written negatives scored in bf16, gradients in fp32",
    "option: shared": "`negatives.shared=true`: the other pairs of the micro-batch as negatives",
    "kernels": "all kernels replaced by their references in torch",
    "kernel": "one kernel replaced by its reference in torch",
    "without 1": "scoring padded, pairs in the order they come, by PyTorch's own products and norms",
    "without 2": "each pair embeds its own copy of its text and image",
    "without 3": "repeated and filtered sentences are scored, then dropped",
    "without 4": "vocabulary logits at every word, not at masked ones alone",
    "without 5": "the last layer at every position, not at wanted ones alone",
    "without 6": "the true pair forwarded for t2i, i2t and syn, not once",
    "without 7": "features of the random images read from a file each",
    "without 8": "every caption of the micro-batch on its own",
}


def newest(folder: Path = BENCHMARKS) -> dict[str, tuple[str, dict[str, Any]]]:
    """{part: (file's name, its rows)}, by the date that the rows carry."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        for part, rows in json.loads(path.read_text()).get("parts", {}).items():
            if part not in found or rows["about"]["date"] >= found[part][1]["about"]["date"]:
                found[part] = (path.name, rows)
    return found


def meaning(name: str) -> str:
    return next((text for start, text in MEANINGS.items() if name.startswith(start)), "")


def origin(file: str, about: dict[str, Any]) -> str:
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}, " if "threads" in about else ""
    load = f", load average {about['load']} at the end" if "load" in about else ""
    return (
        f"`benchmarks/{file}`: {about['date']}, commit {about['commit']}, {about['machine']}, {threads}Python {about['python']}, "
        f"torch {about['torch']}{load}."
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def sizes(settings: dict[str, Any]) -> str:
    return (
        f"{settings['captions']} true pairs, {settings['count']} random negatives each way of which {settings['keep']} are kept, "
        f"{settings['maskings']} x {settings['refills']} sentences written, width {settings['hidden']}, "
        f"{settings['layers']} layers, {settings['heads']} heads, features of width {settings['features']}, "
        f"a vocabulary of {settings['vocabulary']:,}"
    )


def ours_first(found: dict[str, Any]) -> str:
    """Rows of run.py."""
    rows = [
        [row["variant"], f"{row['per_unit']:.3g}", f"{row['ratio']:.2f}", f"{row['gflop']:,.0f}", f"{row['share']:.0%}",
         f"{row['rate']:,.0f}", f"{row['spread']:.0%}" if len(row["all"]) > 1 else "-", meaning(row["variant"])]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["row", "s a pair", "ratio", "GFLOP", "share of the matrix rate", "that rate, GFLOP/s", "spread", "what it is"]
    return f"Sizes: {sizes(found['about']['settings'])}.\n\n{table(head, rows)}"


def phases(found: dict[str, Any]) -> str:
    rows = [[row["phase"], f"{row['seconds']:.2f}", f"{row['share']:.1%}"] for row in found["phases"]]
    rows.append(["the step", f"{found['seconds']:.2f}", "100 %"])
    return (
        f"Sizes: {sizes(found['about']['settings'])}.\n\n{table(['phase', 's', 'share'], rows)}\n\n"
        f"{found['true_pairs_per_s']:.3g} true pairs a second; {found['pairs_per_s']:,.0f} pairs and {found['tokens_per_s']:,.0f} "
        f"tokens a second of all forwards; {found['mined_pairs_per_s']:,.0f} pairs a second in random mining. The step held "
        f"{found['peak_mib']:,.0f} MiB at most beyond the {found['before_mib']:,.0f} MiB of model, bank and libraries."
    )


def growth(found: dict[str, Any]) -> str:
    base = ", ".join(f"{name} {value}" for name, value in found["base"].items())
    out = [f"Base sizes: {base}. Seconds are those of the processor, one thread."]
    for row in found["series"]:
        points = [
            [f"{p['x']}", f"{1000 * p['seconds']:.0f}", f"{p['gflop']:.2f}", f"{1000 * p['seconds'] / p['gflop']:.1f}",
             f"{p['peak_mib']:.0f}"]
            for p in row["points"]
        ]  # fmt: skip
        time, memory = row["fits"]["seconds"], row["fits"]["peak_mib"]
        out.append(table([row["unit"], "ms a true pair", "GFLOP", "ms a GFLOP", "peak MiB of the step"], points))
        out.append(
            f"Time: {1000 * time['a']:.3g} + {1000 * time['b']:.3g} x ms, largest residual {time['residual']:.0%} of the largest "
            f"value; by its logarithm it grows as x^{time['power']:.2f}, the operations as x^{row['fits']['gflop']['power']:.2f}. "
            f"Memory: {memory['a']:.3g} + {memory['b']:.3g} x MiB, residual {memory['residual']:.0%}."
        )
    return "\n\n".join(out)


def small(found: dict[str, Any]) -> str:
    rows = [
        [row["case"], f"{row['hidden']} x {row['layers']}", f"{row['pairs']}", row["kernels"], f"{row['steps_per_s']:.2f}",
         f"{1000 * row['seconds']:.0f}", f"{row['spread']:.0%}"]
        for row in found["rows"]
    ]  # fmt: skip
    return table(["step", "width x layers", "pairs", "kernels", "steps a second", "ms a step", "spread"], rows)


def gpu(found: dict[str, Any]) -> str:
    rows = [[row["part"], row["text"].replace("|", "/")] for row in found["rows"]]
    failed = "".join(f"\n\nFailed: {name}: {why}" for name, why in found["failed"].items())
    return table(["part", "result"], rows) + failed


SHOWN = {"step": ours_first, "savings": ours_first, "phases": phases, "growth": growth, "small": small, "gpu": gpu}


def page(folder: Path = BENCHMARKS) -> str:
    rows = newest(folder)

    def section(found: re.Match[str]) -> str:
        part = found.group(1)
        if part not in rows:
            return "Not measured yet."
        file, content = rows[part]
        return f"{origin(file, content['about'])}\n\n{SHOWN[part](content)}"

    return re.sub(r"\{(\w+)\}", section, TEXT)


TEXT = """# Speed of a step

Written by `python -m tests.bench.page docs/results/speed.md` from the newest rows in [benchmarks/](../../benchmarks); a test holds
the page against them. `make bench` measures anew on a CPU, `make bench-gpu` on a GPU. The corpus is random with COCO's shape: 10 to
100 regions an image (36 on average), five captions of 10 to 22 word pieces. A step is forward and backward of TAGS-DC's objective,
without the optimiser.

How to read a row:

- **s a pair**: seconds a true pair of the step; in the scorer's rows, seconds a scored pair.
- **ratio**: of that to the package's row, the first of its kind. Above 1: slower than the package.
- **GFLOP**: the operations that cannot be avoided, of one step or one scoring call, counted from the actual pairs
  (`tests/bench/operations.py`). A row that computes the package's losses with more work has the package's count.
- **share of the matrix rate**: the time that these operations would take as bare matrix products of the same shapes, measured in
  the same run (`tests/bench/rates.py`), over the row's time. 100 % would be a step of nothing but products. The bare products take
  weights as PyTorch keeps them; the package packs the weights of large products, which makes those 5 to 15 % faster.
- **spread**: (longest - shortest) / median of the repeats; small spreads mean a quiet machine.
  "-": the row takes long and ran once.

## The step and the scorer

{step}

## Each saving taken out alone

{savings}

## Where a step's time goes

A phase's time is what its functions spend outside the other phases. "losses" is the rest of the forward.

{phases}

## Growth

Each size is varied alone; every point is a process of its own. "Peak MiB" is what the step held beyond model, bank and libraries.

{growth}

## Small models

Optimiser steps (forward, backward, clipping, AdamW) at the sizes of `make demo` and `make coco-boxes`, without DeepSpeed, in
seconds of one processor. "default" kernels are the package's, "references" those written in torch.

{small}

## GPU

{gpu}
"""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
