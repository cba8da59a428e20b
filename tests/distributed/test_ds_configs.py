"""The DeepSpeed files that a CPU can run train TAGS-DC, and their losses are those of fp32 within their precision."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import launch

SETTINGS = [*launch.TINY, *launch.TAGS_DC, "optimiser.steps=3", "log.examples=0"]


@pytest.fixture(scope="module")
def fp32_losses(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """ZeRO 0, whose gradient norm the loop takes itself."""
    output = tmp_path_factory.mktemp("zero0") / "run"
    launch.train(world, output, "ds_configs/zero0.json", SETTINGS)
    rows = launch.rows(output)
    assert all(row["gradient_norm"] > 0 for row in rows)
    return [row["loss/total"] for row in rows]


@pytest.mark.parametrize("name", ["zero2_bf16", "zero3_bf16"])
def test_bf16_trains(world: Path, tmp_path: Path, fp32_losses: list[float], name: str) -> None:
    launch.train(world, tmp_path / "run", f"ds_configs/{name}.json", SETTINGS)
    losses = [row["loss/total"] for row in launch.rows(tmp_path / "run")]
    # the first step sees the same weights and draws; a rounded score may choose another hard negative
    assert losses == pytest.approx(fp32_losses, rel=3e-2)

PROGRAM = Path(__file__).with_name("gradient_sum.py")


@pytest.mark.parametrize("name", ["zero2_bf16", "zero3_bf16"])
def test_bf16_sums_micro_batches_in_fp32(name: str) -> None:
    """Summed in bf16 the 16 micro-batches are off by 5e-3."""
    env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(launch.ROOT)}
    command = [sys.executable, str(PROGRAM), f"ds_configs/{name}.json"]
    env["MASTER_PORT"] = str(launch.free_port())
    done = subprocess.run(command, cwd=launch.ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert float(done.stdout.split()[-1]) < 1e-5
