"""The code gives the recorded curves: to the bit on a kind of machine that recorded them, else to 1e-5 relative, or nothing is
known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden import record


@pytest.mark.slow
def test_no_number_moved(tmp_path: Path) -> None:
    environment = record.alone(dict(os.environ))
    command = [sys.executable, "-m", "tests.golden.record"]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    print(done.stdout.splitlines()[-1] if done.stdout else "")
    if done.returncode == record.UNKNOWN:
        pytest.skip("no golden curves of this kind of processor, and those of others part from its own by rounding")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_a_difference_is_found() -> None:
    golden = {"tags": {"loss/t2i": [0.5, 0.25]}, "mine": {"a.npy": "12"}}
    assert record.differences(golden, golden, exact=True) == []
    near = {"tags": {"loss/t2i": [0.5, 0.25 * (1 + 5e-6)]}, "mine": {"a.npy": "12"}}
    assert record.differences(golden, near, exact=False) == [] and len(record.differences(golden, near, exact=True)) == 1
    far = {"tags": {"loss/t2i": [0.5, 0.25 * (1 + 5e-5)]}, "mine": {"a.npy": "12"}}
    assert record.differences(golden, far, exact=False) == [f"tags/loss/t2i/1: 0.25 -> {0.25 * (1 + 5e-5)}"]
    short = {"tags": {"loss/t2i": [0.5]}, "mine": {"a.npy": "12"}}
    assert record.differences(golden, short, exact=False) == ["tags/loss/t2i/: 1 values instead of 2"]
    assert record.differences(golden, {"tags": golden["tags"]}, exact=False) == ["mine: only in one of the two"]


def test_a_recording_holds_for_its_kind_of_machine() -> None:
    machine = {"cpu": "Intel(R) Xeon(R) Processor", "capability": "AVX512", "torch": "2.13.0+cpu", "model": "6-167-1"}
    before = {Path("a"): {"machine": {k: machine[k] for k in ("cpu", "capability", "torch")}}}  # from before the model was kept
    assert record.own_recording(machine, before) == Path("a")
    assert record.own_recording(machine, {Path("b"): {"machine": machine | {"model": "6-143-8"}}}) is None
    assert all({"cpu", "capability", "torch"} <= golden["machine"].keys() for golden in record.recordings().values())


def test_the_model_of_a_processor() -> None:
    first = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 167\nmodel name\t: Some Processor\nstepping\t: 1\n"
    assert record.model_of(f"{first}\nprocessor\t: 1\nmodel\t: 9\n") == ["6", "167", "1"]
