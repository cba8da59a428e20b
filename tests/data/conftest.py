"""A corpus, and what is built of its cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagsds.data.cache import Cache
from tests.data.corpus import write_corpus


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Eleven training images in shards of four, three of test; soft labels of six classes."""
    return write_corpus(tmp_path / "corpus", {"train": 11, "test": 3}, classes=6)


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Files of the shards of each unit that is built."""
    built: list[str] = []
    real = Cache.build

    def counted(self, path, shards):
        built.append("+".join(shard["file"].split(".")[0][-1] for shard in shards))
        real(self, path, shards)

    monkeypatch.setattr(Cache, "build", counted)
    return built
