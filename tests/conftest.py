"""Shared fixtures: one tiny packed world for the whole session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


def pack(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "preprocess.pack", *map(str, arguments)], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed world: 60 training, 12 dev and 20 test images."""
    folder = tmp_path_factory.mktemp("corpus") / "world"
    pack("world", "--out", folder, "--train", 60, "--dev", 12, "--test", 20, "--shard-size", 30, "--workers", 1)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data beside the checkout, for tests that check against it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside this checkout: tests on real public data are left out")
    return SHARED_DATA
