"""Fixtures of the preprocess tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_inputs import TinyCoco


@pytest.fixture
def tiny_coco(tmp_path: Path) -> TinyCoco:
    """Inputs of source `coco`, not written yet."""
    folder = tmp_path / "input"
    folder.mkdir()
    return TinyCoco(folder)
