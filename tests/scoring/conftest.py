"""Fixtures of the tests of scoring."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny_corpus as tiny


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed shards of eight images with 44 captions; tests write nothing into it."""
    return tiny.write_shards(tmp_path_factory.mktemp("corpus") / "shards")
