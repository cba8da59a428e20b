"""Fixtures of the preprocess tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_inputs import TinyCoco
from tiny_vision import TinyPictures, save_model
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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders vit, clip, detr and yolos; not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("vit", "clip", "dinov2", "detr", "yolos"):
        save_model(folder / name, name)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPictures:
    return TinyPictures(tmp_path)
