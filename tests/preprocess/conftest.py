"""Fixtures of the preprocess tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_inputs import TinyCoco

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data, for tests that skip without it."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data is absent")
    return SHARED


@pytest.fixture
def tiny_coco(tmp_path: Path) -> TinyCoco:
    """Inputs of source `coco`, not written yet."""
    folder = tmp_path / "input"
    folder.mkdir()
    return TinyCoco(folder)
