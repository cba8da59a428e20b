"""SIGKILL in each phase of a run; `python -m tests.distributed.kills --kills 20` is the long form."""

from __future__ import annotations

from pathlib import Path

from tests.distributed import kills


def test_a_run_killed_in_each_phase_ends_as_if_undisturbed(world: Path, tmp_path: Path) -> None:
    candidates = kills.prepare(world, tmp_path)
    process = kills.start(world, tmp_path / "whole", 1, candidates, False)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed[-4000:]
    kills.finish(world, tmp_path / "whole")
    phases = ("saving", "mining", "validating", "exporting", "evaluating")
    counts = kills.disturbed(world, tmp_path / "killed", candidates, 1, len(phases), 1, phases)
    assert counts.total() >= 4
    assert kills.differences(tmp_path / "killed", tmp_path / "whole") == []
