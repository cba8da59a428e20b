"""The commands that measure, on sizes too small to measure anything."""

import json

import pytest
import torch

from tests.bench import mining, packers, run


def test_what_is_left_out_changes_no_loss(tmp_path, capsys):
    output = tmp_path / "deep" / "bench.json"
    threads = str(torch.get_num_threads())
    run.main(["--preset", "tiny", "--count", "4", "--threads", threads, "--repeats", "1", "--output", str(output)])
    shown = capsys.readouterr().out
    assert "ratio" in shown and "operations that cannot be avoided" in shown
    written = json.loads(output.read_text())
    wanted = run.PRESETS["tiny"] | {"count": 4}
    assert {name: written["about"]["settings"][name] for name in wanted} == wanted
    rows = {row["variant"]: row for row in written["rows"]}
    assert all(row["seconds"] > 0 and row["gflop"] > 0 and row["share"] > 0 for row in rows.values())
    assert rows["scorer"]["units"] == 2 * 2 * 4 and rows["ours"]["units"] == 2
    losses = {name: row["loss"] for name, row in rows.items() if row["kind"] == "step"}
    same = ["plain", "plain, attention written out"]
    same += [name for name in losses if name.startswith("without") and "one caption" not in name]
    assert len(same) == 9  # a caption by itself draws other negatives, an option changes the arithmetic
    for name in same:
        assert losses[name] == pytest.approx(losses["ours"], abs=1e-5), name
        assert rows[name]["gflop"] == rows["ours"]["gflop"], name  # they compute the same losses: one count stands for all
    for name in (name for name in losses if name.startswith("kernel")):
        assert losses[name] == pytest.approx(losses["ours"], abs=1e-5), name
    for name in ("ours, weights in bf16", "plain, attention written out, weights in bf16", "option: bf16 mining"):
        assert losses[name] == pytest.approx(losses["ours"], abs=1e-2), name
    assert rows["option: shared negatives"]["gflop"] < rows["ours"]["gflop"]
    assert rows["scorer, padded"]["loss"] == pytest.approx(rows["scorer"]["loss"], abs=1e-5)


def test_rows_are_chosen_by_name(capsys):
    run.main(["--preset", "tiny", "--rows", "^plain$", "--repeats", "1", "--threads", str(torch.get_num_threads())])
    shown = capsys.readouterr().out
    assert "\nours " in shown and "\nplain " in shown and "\nscorer" not in shown and "without 1" not in shown


def test_the_speed_of_packers(tmp_path):
    packers.main(["--images", "2", "--folder", str(tmp_path), "--output", str(tmp_path / "packers.json")])
    rows = json.loads((tmp_path / "packers.json").read_text())["rows"]
    assert rows.keys() == packers.FORMATS.keys()
    assert all(0 < row["read_share_of_cpu"] < 1 and 0 < row["check_share_of_cpu"] < 1 for row in rows.values())


def test_the_speed_of_mining(tmp_path):
    threads = str(torch.get_num_threads())
    mining.main(["--threads", threads, "--size", "30x150", "--width", "4", "--output", str(tmp_path / "mining.json")])
    written = json.loads((tmp_path / "mining.json").read_text())
    assert written["rows"][0]["pairs_per_s"] > 0 and written["coco"]["hours"] > 0
