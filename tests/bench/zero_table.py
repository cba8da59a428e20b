"""The table of combinations and its memory: docs/results/zero.md.

    python -m tests.bench.zero_table --data SHARDS --output docs/results/zero.md [--hidden 384 --layers 6]

Two ranks on a CPU train TAGS-DC for two optimiser steps in each cell, one cell after another in one process group
(tests/distributed/combinations.py). Beside the tensors that each held, counted storage by storage, stands what `tagsds.estimate`
computes for the same settings; on a CPU device and host are one memory. Buckets are of 100,000 numbers. Measured cells have one
micro-batch, or two; a cell that recomputes layers is measured at ZeRO 0 alone, where nothing hides the activations.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tagsds.config import load_config
from tagsds.estimate.memory import Machine
from tagsds.estimate.report import compute
from tagsds.formats.manifest import read_manifest
from tests import launch
from tests.distributed.combinations import Cell, grid, refusal

PROGRAM = launch.ROOT / "tests" / "distributed" / "combinations.py"
MIB = 2.0**20
RANKS = 2
BATCH = ["batch.pairs=3", "negatives.count=6", "negatives.keep=3", "synthetic.maskings=2", "synthetic.refills=2",
         "optimiser.lr=1e-5"]  # fmt: skip
MEASURED = [
    *(Cell(stage) for stage in range(4)),
    Cell(0, checkpointing=True), Cell(1, accumulation=2),
    Cell(1, precision="bf16"), Cell(2, precision="bf16", accumulation=2), Cell(3, precision="bf16", accumulation=2),
    Cell(2, offload="optimizer"), Cell(3, offload="optimizer", precision="bf16"), Cell(3, offload="both", precision="bf16"),
]  # fmt: skip


def launch_cells(data: str, jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Rank 0's reports."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    shared = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port()), "OMP_NUM_THREADS": "1",
              "DS_ACCELERATOR": "cpu", "TQDM_DISABLE": "1", "PYTHONPATH": str(launch.ROOT)}  # fmt: skip
    command = [sys.executable, str(PROGRAM), data, str(folder / "jobs.json"), str(folder / "out.json")]
    ranks = [
        subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(RANKS)
    ]
    try:
        codes = [rank.wait(3600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * RANKS
    return json.loads((folder / "out.json").read_text())


def estimated(data: str, cell: Cell, settings: list[str], folder: Path) -> tuple[float, float]:
    """Bytes at rest and at most, host and device together, without the process itself."""
    file = folder / "cell.json"
    file.write_text(json.dumps(cell.deepspeed()))
    config = load_config("published-base", [*settings, *cell.settings()])
    parts = [part for part in compute(config, read_manifest(data), file, Machine("cpu", RANKS, RANKS)).memory
             if not part.name.startswith("Python")]  # fmt: skip
    rest = sum(part.bytes for part in parts if part.at == "always")
    return rest, rest + max(sum(p.bytes for p in parts if p.at == at) for at in ("backward", "mining", "writing", "step"))


def name_of(cell: Cell) -> str:
    extra = [cell.precision, f"offload {cell.offload}" * bool(cell.offload),
             f"{cell.accumulation} micro-batches" * (cell.accumulation > 1), "recomputed" * cell.checkpointing]  # fmt: skip
    return f"ZeRO {cell.stage}, " + ", ".join(filter(None, extra))


def combinations(folder: Path) -> list[str]:
    """The table of all cells. Accumulation and recomputation change nothing but in the one row that says so."""
    tolerance = {"fp32": "runs", "bf16": "runs", "fp16": ""}
    out = ["| ZeRO | offload | precision | on a CPU | on a GPU |", "|---|---|---|---|---|"]
    for cell in grid():
        if cell.checkpointing or cell.accumulation > 1:
            continue
        refused = [refusal(cell, folder, RANKS, on_gpu) for on_gpu in (False, True)]
        many = refusal(Cell(cell.stage, cell.offload, cell.precision, 2), folder, RANKS, False)
        note = f"; with several micro-batches: {many}" if many and not refused[0] else ""
        cpu = refused[0] or tolerance[cell.precision] + note
        gpu = refused[1] or ("not tried; no test" if (cell.precision, cell.stage) == ("fp16", 0) else "not tried here" + note)
        out.append(f"| {cell.stage} | {cell.offload or 'none'} | {cell.precision} | {cpu} | {gpu} |")
    return out


def memory_table(data: str, reports: list[dict[str, Any]], settings: list[str], folder: Path) -> tuple[list[str], list[float]]:
    out = ["| cell | at rest: tensors | estimate | at most: tensors | estimate |", "|---|---|---|---|---|"]
    ratios = []
    for report in reports:
        cell = Cell(**report["cell"])
        rest, most = estimated(data, cell, settings, folder)
        ratios += [rest / report["rest"], most / report["peak"]]
        row = (f"{report['rest'] / MIB:.1f}", f"{rest / MIB:.1f} ({100 * rest / report['rest'] - 100:+.0f} %)",
               f"{report['peak'] / MIB:.1f}", f"{most / MIB:.1f} ({100 * most / report['peak'] - 100:+.0f} %)")  # fmt: skip
        out.append(f"| {name_of(cell)} | {' | '.join(row)} |")
    return out, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="packed shards; a small `tagsds-pack world` will do")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--reports", type=Path, help="take these measurements (JSON), or leave them there")
    args = parser.parse_args()
    sizes = [f"model.hidden_size={args.hidden}", f"model.num_hidden_layers={args.layers}", "model.num_attention_heads=6",
             f"model.intermediate_size={4 * args.hidden}"]  # fmt: skip
    settings = [*launch.TINY, *launch.TAGS_DC, *sizes, *BATCH]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.reports and args.reports.is_file():
            reports = json.loads(args.reports.read_text())
        else:
            jobs = [{"cell": vars(cell), "settings": settings, "steps": 2, "count": True} for cell in MEASURED]
            reports = launch_cells(args.data, jobs, folder)
            if args.reports:
                args.reports.write_text(json.dumps(reports))
        table, ratios = memory_table(args.data, reports, settings, folder)
        cells = combinations(folder)
    args.output.write_text(PAGE.format(
        combinations="\n".join(cells), memory="\n".join(table), trained=reports[0]["trained"],
        hidden=args.hidden, layers=args.layers, torch=torch.__version__, rest=spread(ratios[::2]), most=spread(ratios[1::2]),
    ))  # fmt: skip
    print(f"{args.output}: estimate against measurement: at rest {spread(ratios[::2])}, at most {spread(ratios[1::2])}")


def spread(ratios: list[float]) -> str:
    return f"{100 * min(ratios) - 100:+.0f} % to {100 * max(ratios) - 100:+.0f} %"


PAGE = """# Combinations of DeepSpeed's settings, and their memory

Written by `python -m tests.bench.zero_table`. DeepSpeed 0.19.8, torch {torch}.

## Which combinations run

Each row holds with one and with several micro-batches, and with and without `batch.activation_checkpointing`, unless it says
otherwise. "runs" means, for two optimiser steps of TAGS-DC on two ranks: in fp32, losses and weights are those of the plain
run (ZeRO 0, nothing recomputed) to a relative 1e-5; in bf16, losses are those of fp32 to 3 %, and the weights after the first
step those of ZeRO 2 in bf16 to 5e-3 (later a rounded score may choose another hard negative). Of weights, relative to the way
that they have come. ZeRO 1 with offloading sums micro-batches in bf16 whatever `grad_accum_dtype` says.
`tests/distributed/test_combinations.py` runs every such cell and holds every refusal; its GPU part is skipped without a GPU.
No GPU was at hand: "not tried here".

{combinations}

## Memory of a rank

{trained:,} trained parameters (width {hidden}, {layers} layers), fp32 unless named, two ranks on a CPU, MiB. "Tensors" are the
storages that operators made and that were alive, at the end of the second step ("at rest": weights, optimiser, buffers) and at most
within it. On a CPU, what is offloaded is counted with the rest.

{memory}

The estimate is off by {rest} at rest, and by {most} at most. At rest it is a sum of exact terms. At most it adds activations,
which are exact for a layer without padding (tests/test_estimate.py), but here come from mean lengths, padding from the
longest text and image, all refills left by the filters, and phases that need not fall together; temporary results inside
backward are not in it. Two terms were found by these very measurements: what the graph holds at ZeRO 3, and the fp32
attention of bf16 on a CPU; so the agreement of those rows is not a prediction. On a GPU nothing has been measured, and what
an allocator leaves unused between blocks is not in the estimate.
"""


if __name__ == "__main__":
    main()
