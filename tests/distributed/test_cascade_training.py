"""Cascade mining through DeepSpeed: two ranks under ZeRO 3 give the losses of ZeRO 1, and the export brings the probe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tagsds.models.load import load_model
from tests import launch

SETTINGS = [*launch.TINY, "negatives.cascade=0.5", "negatives.cascade_after=2", "log.examples=0"]


def test_zero_3_equals_zero_1(world: Path, tmp_path: Path) -> None:
    rows = {}
    for stage in (1, 3):
        file = tmp_path / f"zero{stage}.json"
        zero = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
        file.write_text(json.dumps({"zero_optimization": zero}))
        launch.train(world, tmp_path / f"run{stage}", str(file), SETTINGS, ranks=2)
        rows[stage] = launch.rows(tmp_path / f"run{stage}")
    for name in ("loss/total", "loss/cascade", "cascade/kept_of_top", "gradient_norm"):
        assert [row[name] for row in rows[3]] == pytest.approx([row[name] for row in rows[1]], rel=1e-4), name
    assert len({row["loss/cascade"] for row in rows[1]}) == 6

    some, other = (load_file(tmp_path / f"run{stage}" / "export" / "model.safetensors") for stage in (1, 3))
    assert set(some) == set(other) and sum(name.startswith("probe.") for name in some) == 12
    assert all(torch.allclose(some[name], other[name], atol=1e-4) for name in some)
    assert hasattr(load_model(tmp_path / "run3" / "export"), "probe")
