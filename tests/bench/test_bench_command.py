"""The commands that measure, on sizes too small to measure anything."""

import json

import pytest
import torch

from tests.bench import mining, packers, run

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


def test_the_speed_of_packers(tmp_path):
    packers.main(["--images", "2", "--folder", str(tmp_path), "--output", str(tmp_path / "packers.json")])
    rows = json.loads((tmp_path / "packers.json").read_text())["rows"]
    assert rows.keys() == packers.FORMATS.keys()
    assert all(0 < row["read_share_of_cpu"] < 1 and 0 < row["check_share_of_cpu"] < 1 for row in rows.values())


def test_the_speed_of_mining(tmp_path):
    threads = str(torch.get_num_threads())
    mining.main(["--threads", threads, "--sizes", "30x150", "--width", "4", "--output", str(tmp_path / "mining.json")])
    written = json.loads((tmp_path / "mining.json").read_text())
    assert [row["size"] for row in written["rows"]] == ["30x150"] and written["rows"][0]["pairs_per_s"] > 0
