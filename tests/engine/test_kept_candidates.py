"""Which re-mined candidates a run keeps."""

from pathlib import Path

import pytest
import torch

from tagsds.engine.offline import OfflineSource
from tagsds.errors import UserError
from tagsds.formats.candidates import Candidates
from tagsds.negatives.offline import OfflineConfig
from tagsds.ranks import World


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


def test_a_run_resumed_at_a_re_mining_starts_from_the_one_before(tmp_path: Path, monkeypatch):
    """Undisturbed, step 6 re-orders what step 3 left; a run resumed at step 6 must not re-order what it was given."""
    source = OfflineSource.__new__(OfflineSource)
    source.folder, source.mined, source._loaded = tmp_path, "given", (0, "given")
    source.config, source.manifest, source.split = OfflineConfig(remine_every=3), None, "train"
    (tmp_path / "step3").mkdir()
    (tmp_path / "step3" / "candidates.json").write_text("{}")
    started_from = []

    def remine(bank, folder):
        started_from.append(source._loaded)
        folder.mkdir()
        (folder / "candidates.json").write_text("{}")

    monkeypatch.setattr(source, "remine", remine)
    monkeypatch.setattr(Candidates, "read", lambda folder, *_: folder.name)
    assert source.at(6, None) == "step6" and started_from == [(3, "step3")]
    assert source.at(7, None) == "step6" and source.at(8, None) == "step6"
    assert source.at(9, None) == "step9" and started_from[1:] == [(6, "step6")]
    with pytest.raises(UserError, match="step12 is missing"):
        source.at(13, None)
