"""One run a folder; a dead run holds nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tagsds.engine.lock import lock_output
from tagsds.errors import UserError
from tagsds.ranks import World
from tests.launch import ROOT

HOLD = """
import sys, time
from pathlib import Path
from tagsds.engine.lock import lock_output
from tagsds.ranks import World
lock = lock_output(Path(sys.argv[1]), World())
print("held", flush=True)
time.sleep(60)
"""


def test_a_living_run_refuses_the_next_and_a_dead_one_does_not(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"belongs to a run that is going on .process {holder.pid} on .*name another --output"):
            lock_output(tmp_path, World())
    finally:
        holder.kill()
        holder.wait()
    with lock_output(tmp_path, World()) as lock:
        assert lock is not None


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        lock_output(tmp_path / "file" / "run", World())
