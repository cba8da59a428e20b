"""ZeRO stage x offload x precision x accumulation x activation checkpointing: each combination that a CPU can run trains TAGS-DC on
two ranks to the numbers of the plain run with as many micro-batches; each that it cannot is refused with one sentence.

fp32: losses and weights are those of ZeRO 0, of two steps. Half precision: losses are those of fp32 to 3 %; after the first
step a rounded score may choose another hard negative, so that the weights after one step are held against those of ZeRO 2 in
the same precision. Errors of a loss are relative; the distance of the weights is relative to the way that they have come.
(ZeRO 1 with offloading sums micro-batches in bf16 whatever grad_accum_dtype says: 0.2 % of the way.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import launch
from tests.distributed.combinations import Cell, grid, refusal

PROGRAM = Path(__file__).with_name("combinations.py")
# Adam's eps as large as the gradients: an update then follows the gradient and not its sign, so that errors of rounding stay small
SETTINGS = [*launch.TINY, *launch.TAGS_DC, "batch.pairs=2", "negatives.count=5", "negatives.keep=2", "optimiser.eps=1e-3"]
STEPS = 2
OF_LOSS = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 1e-2}  # relative to fp32
OF_WEIGHTS = {"fp32": 1e-5, "bf16": 5e-3, "fp16": 1e-2}  # relative to the way, to the first cell of the same precision
NOT_ON_A_CPU = {"fp16": "fp16 needs a GPU", "bf16": "bf16 at ZeRO stage 0 runs one optimiser step late in DeepSpeed; use stage 1"}


def jobs_of(cells: list[Cell]) -> list[dict[str, Any]]:
    """First what the others are held against."""
    precision = cells[0].precision
    first = [Cell(0, accumulation=n) for n in (1, 2)]
    first += [] if precision == "fp32" else [Cell(2, precision=precision, accumulation=n) for n in (1, 2)]
    every = [*first, *(cell for cell in cells if cell not in first)]
    after = STEPS if precision == "fp32" else 1
    return [{"cell": vars(cell), "settings": SETTINGS, "steps": STEPS, "weights_after": after} for cell in every]


def check(reports: list[dict[str, Any]], cells: list[Cell]) -> None:
    """Within the tolerances; all misses at once."""
    found = {Cell(**report["cell"]): report for report in reports}
    wrong = []
    for cell in cells:
        report, plain = found[cell], found[Cell(0, accumulation=cell.accumulation)]
        if "refused" in report or len(report["losses"]) != STEPS * cell.accumulation or report["moved"] < 1e-3:
            wrong.append((cell, report))
            continue
        loss = max(abs(a - b) / abs(b) for a, b in zip(report["losses"], plain["losses"], strict=True))
        weights = report["weight_error"] / report["moved"]
        if loss > OF_LOSS[cell.precision] or weights > OF_WEIGHTS[cell.precision]:
            wrong.append((cell, loss, weights))
    assert wrong == []


def cpu_cells(precision: str, folder: Path) -> list[Cell]:
    return [cell for cell in grid((precision,)) if not refusal(cell, folder, 2, False)]


def summed(cells: list[Cell]) -> list[Cell]:
    """One cell of each stage and offloading: that with two micro-batches, where it is not refused."""
    return list({(cell.stage, cell.offload): cell for cell in sorted(cells, key=lambda cell: cell.accumulation)}.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "count", "checkpointing", "every"),
    [
        pytest.param("bf16", 7, True, False, id="bf16-recomputed-summed"),
        pytest.param("bf16", 13, True, True, id="bf16-recomputed", marks=pytest.mark.long),
        pytest.param("bf16", 13, False, True, id="bf16-kept", marks=pytest.mark.long),
        pytest.param("fp32", 16, True, True, id="fp32-recomputed", marks=pytest.mark.long),
        pytest.param("fp32", 16, False, True, id="fp32-kept", marks=pytest.mark.long),
    ],
)
def test_each_cell_of_a_cpu_equals_the_plain_run(
    world: Path, tmp_path: Path, precision: str, count: int, checkpointing: bool, every: bool
) -> None:
    cells = [cell for cell in cpu_cells(precision, tmp_path) if cell.checkpointing == checkpointing]
    cells = cells if every else summed(cells)
    assert len(cells) == count
    (tmp_path / "jobs.json").write_text(json.dumps(jobs_of(cells)))
    launch.run_two(PROGRAM, world, tmp_path / "jobs.json", tmp_path / "out.json")
    check(json.loads((tmp_path / "out.json").read_text()), cells)


def test_what_cannot_run_gets_its_sentence(tmp_path: Path) -> None:
    for cell in grid():
        found = refusal(cell, tmp_path, 2, False)
        if cell.precision == "fp16" or (cell.precision == "bf16" and cell.stage == 0):
            assert found.startswith(NOT_ON_A_CPU[cell.precision]), cell
        elif cell.precision == "bf16" and (cell.stage, cell.offload, cell.accumulation) == (1, "", 2):
            assert found.startswith("bf16 at ZeRO stage 1 sums micro-batches wrongly"), cell
        elif cell.offload and cell.stage == 0:
            assert found.startswith("offload_optimizer means nothing at ZeRO stage 0"), cell
        else:
            assert found == "", cell
        assert "\n" not in found and found.count(". ") == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: fp16 and offloading from a GPU are not tried")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_each_cell_of_a_gpu_equals_the_plain_run(world: Path, tmp_path: Path, precision: str) -> None:
    cells = [cell for cell in grid((precision,)) if not refusal(cell, tmp_path, 1, True) and (cell.stage or precision == "fp32")]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs_of(cells)))
    alone = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port())}
    env = os.environ | alone | {"PYTHONPATH": str(launch.ROOT)}
    command = [sys.executable, str(PROGRAM), str(world), str(tmp_path / "jobs.json"), str(tmp_path / "out.json")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    check(json.loads((tmp_path / "out.json").read_text()), cells)
