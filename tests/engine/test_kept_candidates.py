"""Which re-mined candidates a run keeps."""

from pathlib import Path

import pytest
import torch

from tagsds.engine.build import World
from tagsds.engine.offline import OfflineSource


@pytest.mark.parametrize(
    ("oldest", "kept"),
    [(0, [100, 200, 300]), (100, [100, 200, 300]), (150, [100, 200, 300]), (200, [200, 300]), (250, [200, 300]), (900, [300])],
)
def test_candidates_that_a_checkpoint_may_need_are_kept(tmp_path: Path, oldest: int, kept: list[int]):
    """A run resumed at step s draws from the newest candidates of a step up to s."""
    source = OfflineSource.__new__(OfflineSource)
    source.folder, source.world = tmp_path, World(0, 1, torch.device("cpu"))
    for step in (100, 200, 300):
        (tmp_path / f"step{step}").mkdir()
    source.forget(oldest)
    assert sorted(int(path.name[4:]) for path in tmp_path.iterdir()) == kept
