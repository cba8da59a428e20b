"""The Triton kernels without a GPU: right in the interpreter, and compiled for A100 and H100/H200. Each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tagsds.kernels import triton as package
from tests.bench import kernels as benchmark

ROOT = Path(__file__).parents[2]
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}  # bytes a program may have: NVIDIA's tables of compute capabilities

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed here: pip install 'tagsds[kernels]' (Linux)"
)


def run(*command: str, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["attention", "add_norm", "sample"])
def test_values_and_gradients_in_the_interpreter(kernel):
    run("-m", "pytest", f"tests/kernels/interpreted/test_interpreted_{kernel}.py", TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_every_kernel_compiles_fits_and_spills_nothing_at_the_main_sizes():
    report = json.loads(run("tests/kernels/compile_report.py", "--main", "--json", TRITON_INTERPRET="0"))
    rows = report["rows"]
    assert {row["target"] for row in rows} == set(SHARED)
    written = {"attend", "attend_dq", "attend_dkv", "add_norm_forward", "add_norm_backward", "sample_chunk"}
    assert {row["kernel"] for row in rows} == written
    for row in rows:
        assert row["shared"] <= SHARED[row["target"]], row
        assert row["registers"] <= 255, row
        assert row["spills"] == 0, row
        if row["dtype"] != "float32" and "add_norm" not in row["kernel"]:
            assert row["tensor_cores"], row
    page = (ROOT / "docs" / "kernels.md").read_text().splitlines()
    missing = [line for line in report["table"] if line not in page]
    assert missing == [], "docs/kernels.md holds other figures: python tests/kernels/compile_report.py prints its table"


def test_the_benchmark_runs_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    benchmark.main(["--device", "cpu", "--repeats", "1", "--output", str(tmp_path / "kernels.json")])
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert {row["operation"].split(",")[0].split(" of ")[0] for row in rows} == {"attention", "add_norm", "sampling"}
    assert all(row["milliseconds"] > 0 for row in rows)


def test_who_takes_the_kernels(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not package.runs_on(x), "compiled kernels need a GPU"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(package, "installed", lambda: True)
    assert package.runs_on(x)
    monkeypatch.setattr(package, "installed", lambda: False)
    assert not package.runs_on(x)
