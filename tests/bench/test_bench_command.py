"""The command that measures the step, on a model too small to measure anything."""

import json

import pytest
import torch

from tests.bench import run

SMALL = {"captions": 2, "images": 12, "count": 5, "keep": 2, "maskings": 2, "refills": 2, "hidden": 16, "layers": 2, "heads": 2}


def test_what_is_left_out_changes_no_loss(tmp_path, capsys):
    output = tmp_path / "deep" / "bench.json"
    options = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    run.main([*options, "--threads", str(torch.get_num_threads()), "--repeats", "1", "--output", str(output)])
    assert "ratio" in capsys.readouterr().out
    written = json.loads(output.read_text())
    assert {name: written["about"]["settings"][name] for name in SMALL} == SMALL
    losses = {row["variant"]: row["loss"] for row in written["rows"]}
    assert len(losses) == 12 and all(row["seconds"] > 0 for row in written["rows"])
    same = [name for name in losses if name == "plain" or (name.startswith("without") and "one caption" not in name)]
    assert len(same) == 8  # a caption by itself draws other negatives, an option changes the arithmetic
    for name in same:
        assert losses[name] == pytest.approx(losses["ours"], abs=1e-5), name
