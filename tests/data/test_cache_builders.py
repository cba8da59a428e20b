"""Who builds a cache: several processes at once, after a kill, in folders that cannot be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagsds.data import cache as module
from tagsds.data.shards import load_bank
from tests.data.cached import assert_equal, plain, unit

BUILD = """
import os, sys, time
from pathlib import Path
from tagsds.data import cache
from tagsds.data.shards import load_bank
real = cache.Cache.build
def build(self, path, shards):
    print("builds", flush=True)
    time.sleep(1.0)
    real(self, path, shards)
cache.Cache.build = build
if sys.argv[2] == "without locks":
    cache.fcntl.flock = lambda *_: (_ for _ in ()).throw(OSError("no locks"))
ready = Path(sys.argv[3])
(ready / str(os.getpid())).touch()
while len(list(ready.iterdir())) < 2:  # both have imported what they need
    time.sleep(0.01)
bank, _ = load_bank(sys.argv[1], "train")
print(bank.texts[7], float(bank.regions.values.float().sum()))
"""


@pytest.mark.parametrize(("locks", "builders"), [("with locks", 1), ("without locks", 2)])
def test_two_processes_at_once_end_with_one_whole_cache(corpus, tmp_path, locks, builders):
    expected = plain(corpus)
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", BUILD, str(corpus), locks, str(tmp_path / "ready")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = []
    for process in running:
        out, problem = process.communicate(timeout=120)
        assert process.returncode == 0, problem
        said += out.splitlines()
    assert said.count("builds") == builders
    assert {line for line in said if line != "builds"} == {f"{expected.texts[7]} {float(expected.regions.values.float().sum())}"}
    assert [path.name for path in (corpus / "cache").iterdir() if path.is_dir()] == [unit(corpus).name]
    assert_equal(load_bank(corpus, "train")[0], expected)


def test_what_a_killed_build_left_is_removed(corpus, builds):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (corpus / "cache").mkdir()
    left = [corpus / "cache" / f"{unit(corpus).name}.building.{node}.{ended.pid}" for node in (os.uname().nodename, "elsewhere")]
    for folder in left:
        folder.mkdir()
    load_bank(corpus, "train")
    assert not left[0].exists() and left[1].exists()  # of another node's process nothing is known


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(corpus, monkeypatch, capsys, code):
    """The bank is read into memory, and a run says so once."""
    real = Path.mkdir

    def refuse(self, *args, **kwargs):
        if "cache" in self.parts and self.name != "cache":
            raise OSError(code, os.strerror(code), str(self))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(module, "_said", set())
    for _ in range(2):
        assert_equal(load_bank(corpus, "train")[0], plain(corpus))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(corpus / "cache") in said[0] and "data.cache" in said[0] and os.strerror(code) in said[0]


def test_a_file_in_the_place_of_the_folder(corpus, monkeypatch, capsys):
    (corpus / "cache").write_text("mine")
    monkeypatch.setattr(module, "_said", set())
    assert_equal(load_bank(corpus, "train")[0], plain(corpus))
    assert "cannot be written" in capsys.readouterr().err and (corpus / "cache").read_text() == "mine"
