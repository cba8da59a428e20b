"""docs/results/speed.md is what the newest rows in benchmarks/ say; the commands that make rows run to their end."""

import json
from pathlib import Path

import pytest

from tests.bench import growth, phases, small, speed
from tests.bench.page import MEANINGS, meaning, newest, page

PAGE = Path(__file__).parents[2] / "docs" / "results" / "speed.md"


def test_the_page_is_that_of_the_rows():
    assert PAGE.read_text() == page(), "run python -m tests.bench.page docs/results/speed.md"


def test_the_newest_rows_count(tmp_path):
    for name, date, commit in (("b", "2026-01-02", "old"), ("a", "2026-01-03", "new")):
        about = {"date": date, "commit": commit, "machine": "m", "python": "3", "torch": "2"}
        row = {"case": "c", "kernels": "k", "hidden": 1, "layers": 2, "pairs": 3}
        row |= {"steps_per_s": 4.0, "seconds": 0.25, "spread": 0.5}
        speed.add_part(tmp_path / f"{name}-speed.json", "small", {"about": about, "rows": [row]})
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    assert {part: file for part, (file, _) in newest(tmp_path).items()} == {"small": "a-speed.json"}
    text = page(tmp_path)
    assert "| c | 1 x 2 | 3 | k | 4.00 | 250 | 50% |" in text and "commit new" in text and "commit old" not in text
    assert text.count("Not measured yet.") == 5


def test_a_part_replaces_itself_alone(tmp_path):
    for part, rows in (("step", {"rows": 1}), ("growth", {"rows": 2}), ("step", {"rows": 3})):
        speed.add_part(tmp_path / "x.json", part, rows)
    assert json.loads((tmp_path / "x.json").read_text()) == {"parts": {"step": {"rows": 3}, "growth": {"rows": 2}}}


def test_rows_have_meanings():
    assert meaning("plain, attention written out, dropout 0.1") == MEANINGS["plain, attention written out"]
    assert meaning("scorer, kernels: all references") == MEANINGS["scorer, kernels"]
    assert meaning("scorer") == MEANINGS["scorer"] and meaning("kernel attention: reference") == MEANINGS["kernel"]


def test_a_failed_part_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(speed.PARTS, "small", ("no_such_module", [], []))
    assert speed.main(["--parts", "small", "--tiny", "--output", str(tmp_path / "x.json")]) == 1
    assert "these parts failed, see above: small" in capfd.readouterr().err and not (tmp_path / "x.json").exists()


def test_phases_add_up(tmp_path):
    phases.main(["--preset", "tiny", "--repeats", "1", "--threads", "1", "--output", str(tmp_path / "phases.json")])
    found = json.loads((tmp_path / "phases.json").read_text())
    assert sum(row["share"] for row in found["phases"]) == pytest.approx(1.0)
    assert all(row["seconds"] > 0 for row in found["phases"]) and [row["phase"] for row in found["phases"]] == phases.ORDER
    assert found["pairs_per_s"] > found["true_pairs_per_s"] > 0 and found["gflop"] > 0


def test_clocks_charge_the_inner_phase(monkeypatch):
    """draw 0..10, of which refill 3..7: 6 and 4 seconds."""
    import torch

    times = iter([0.0, 3.0, 7.0, 10.0])
    monkeypatch.setattr(phases, "clock", lambda device: next(times))
    clocks = phases.Clocks(torch.device("cpu"))
    with clocks.of("draw and filter"):
        with clocks.of("refill"):
            pass
    assert clocks.seconds["draw and filter"] == 6.0 and clocks.seconds["refill"] == 4.0


def test_a_line_and_its_exponent():
    straight = growth.line([1.0, 2.0, 4.0], [5.0, 8.0, 14.0])
    assert straight == pytest.approx({"a": 2.0, "b": 3.0, "residual": 0.0, "power": 0.743}, abs=1e-2)
    assert growth.line([1.0, 2.0, 4.0], [3.0, 12.0, 48.0])["power"] == pytest.approx(2.0)


def test_growth_in_processes_of_their_own(tmp_path):
    growth.main(["--tiny", "--repeats", "1", "--only", "negatives", "--output", str(tmp_path / "growth.json")])
    (series,) = json.loads((tmp_path / "growth.json").read_text())["series"]
    few, many = series["points"]
    assert (few["x"], many["x"]) == (4, 8) and 0 < few["gflop"] < many["gflop"] and min(few["seconds"], many["seconds"]) > 0


def test_steps_of_a_small_model(tmp_path, capsys):
    small.main(["--steps", "1", "--images", "60", "--only", "COCO boxes, TAGS stage 1", "--output", str(tmp_path / "small.json")])
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert {row["kernels"] for row in rows} <= {"default", "references"} and all(row["steps_per_s"] > 0 for row in rows)
    assert (rows[0]["hidden"], rows[0]["layers"], rows[0]["pairs"]) == (64, 2, 24)
