"""Fixtures: the cluster of the session, and a folder of runs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NODES, SCRIPT, Cluster, free_ports, reason_to_skip


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if why := reason_to_skip():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="tagsds-slurm-"))  # munged wants a folder that all may enter
    folder.chmod(0o755)
    log = folder / "up.log"
    with open(log, "w") as stream:  # a pipe would be kept open by the daemons
        up = subprocess.run([SCRIPT, "up", folder, str(len(NODES)), str(free_ports(1 + len(NODES)))], stdout=stream, stderr=stream)
    try:
        assert up.returncode == 0, log.read_text()
        yield Cluster(folder)
    finally:
        subprocess.run([SCRIPT, "down", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"
