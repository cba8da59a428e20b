"""Fixtures of the preprocess tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_inputs import TinyCoco
from uniter_inputs import UniterInputs


@pytest.fixture
def tiny_coco(tmp_path: Path) -> TinyCoco:
    """Inputs of source `coco`, not written yet."""
    folder = tmp_path / "input"
    folder.mkdir()
    return TinyCoco(folder)


@pytest.fixture
def inputs(tmp_path: Path) -> UniterInputs:
    """Inputs of source `uniter-lmdb`, not written yet."""
    return UniterInputs(tmp_path)
