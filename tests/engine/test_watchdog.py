"""A rank that hangs or is frozen ends the run on all ranks in time, and says first where it was."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tagsds.engine.watchdog import HANGS
from tests import launch

PROGRAM = Path(__file__).with_name("hanging_rank.py")


def two(case: str) -> tuple[list[int | None], list[str], float]:
    """Exit status and what was printed, by rank, and the seconds that it took. A frozen process is killed at the end."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.free_port()), "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join([str(launch.ROOT), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), case], env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    begin, frozen = time.monotonic(), int(case[-1]) if case.startswith("frozen") else None
    try:
        for rank, process in enumerate(processes):
            if rank != frozen:
                process.wait(timeout=120)
        seconds = time.monotonic() - begin
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    printed = [process.communicate()[0] for process in processes]
    return [process.returncode for process in processes], printed, seconds


@pytest.mark.parametrize("culprit", [0, 1])
def test_the_rank_that_hangs_says_where(culprit: int) -> None:
    status, printed, _ = two(f"hang-{culprit}")
    assert status == [HANGS, HANGS]
    assert f"error: rank {culprit} (process" in printed[culprit]
    assert "has made no progress for" in printed[culprit] and "it is at: step 1, forward" in printed[culprit]
    assert "hanging_rank.py" in printed[culprit], "the stack of the thread that hangs"


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_frozen_rank_is_missed_by_the_other(culprit: int) -> None:
    status, printed, _ = two(f"frozen-{culprit}")
    assert status[1 - culprit] == HANGS, printed
    if culprit == 1:
        assert "error: rank 1 (process" in printed[0] and "rank 0 (process" not in printed[0]


def test_long_work_and_a_good_end_are_left_alone() -> None:
    status, printed, _ = two("slow-0")
    assert status == [0, 0] and all("done" in text for text in printed)
