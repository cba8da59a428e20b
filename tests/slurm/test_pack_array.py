"""A corpus packed by a job array, one slice of which is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import ROOT, Cluster, settings, until

pytestmark = pytest.mark.slow
SOURCE = ["world", "--train", "300", "--dev", "20", "--test", "20", "--shard-size", "10"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def packer_of(part: str) -> int:
    """The process that packs this slice; 0 where there is none."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"preprocess.pack" in words and part.encode() in words:
            return int(process.name)
    return 0


def test_an_array_of_slices_one_of_them_killed(cluster: Cluster, runs: Path, tmp_path: Path) -> None:
    whole, data = tmp_path / "whole", tmp_path / "data"
    subprocess.run([sys.executable, "-m", "preprocess.pack", *SOURCE, "--out", str(whole), "--workers", "1"], cwd=ROOT, check=True)
    env = settings(data, runs) | {"SLICES": "3", "PACK_CPUS": "1"}
    array, merge = cluster.submit("pack.sh", *SOURCE, env=env)
    # its second shard: by then the first is in the journal too, which a kill right after its file appears may prevent
    until(lambda: (data / "train-000004.tar").exists(), "the second shard of the second slice", 120)
    os.kill(packer_of("2/3"), signal.SIGKILL)
    until(lambda: cluster.state(f"{array}_2") == "FAILED", "the end of the killed slice", 120)
    # the merge's condition can no longer come true: SLURM removes it
    assert cluster.finished(merge, 120) == "CANCELLED"
    for number in (1, 3):
        assert cluster.finished(f"{array}_{number}") == "COMPLETED"
    assert not (data / "manifest.json").exists() and not (data / "train-000031.tar").exists()

    before = (data / "train-000000.tar").stat().st_mtime_ns, (data / "train-000001.tar").stat().st_mtime_ns
    merge = cluster.submit("pack.sh", *SOURCE, env=env)[1]  # the same command again
    assert cluster.finished(merge) == "COMPLETED", "".join(log.read_text() for log in (runs / "pack" / "logs").glob("*.log"))
    assert ((data / "train-000000.tar").stat().st_mtime_ns, (data / "train-000001.tar").stat().st_mtime_ns) == before
    assert contents(data) == contents(whole)
