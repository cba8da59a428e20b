"""Pictures of the docs: their size, and that they are taken of a real page."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagsds.errors import UserError
from tests import screenshots
from tests.test_report_pictures import run  # noqa: F401

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_pictures_of_the_docs_are_small_and_shown():
    pictures = {path.name: path.stat().st_size for path in (DOCS / "pictures").iterdir()}
    assert max(pictures.values()) <= screenshots.MOST_BYTES and sum(pictures.values()) <= 700_000
    shown = [
        match for page in DOCS.rglob("*.md") for match in re.findall(r"!\[([^\]]{40,})\]\(pictures/([^)]+)\)", page.read_text())
    ]
    assert {name for _, name in shown} == set(pictures)  # each with a text of some length


def test_shrinking_keeps_the_size():
    page = np.full((300, 400, 3), 255, np.uint8)
    page[50:100, 50:350] = (20, 116, 73)
    stream = io.BytesIO()
    Image.fromarray(page).save(stream, "PNG")
    small = Image.open(io.BytesIO(screenshots.shrink(stream.getvalue())))
    assert small.size == (400, 300) and small.mode == "P"
    assert np.array_equal(np.asarray(small.convert("RGB")), page)
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)).save(noise, "PNG")
    with pytest.raises(UserError, match="400 x 300 pixels does not fit into 10000 bytes"):
        screenshots.shrink(noise.getvalue(), 10_000)


def test_the_report_of_a_run(run, tmp_path):  # noqa: F811
    screenshots.shoot_report([run], tmp_path)
    for name in ("report", "report-rankings", "report-negatives"):
        image = Image.open(tmp_path / f"{name}.png")
        assert image.width == screenshots.WIDTH and image.height > 150
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 5  # something is drawn


def test_a_folder_without_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["screenshots", str(tmp_path / "out"), "--run", str(tmp_path)])
    with pytest.raises(SystemExit):
        screenshots.main()
    assert "make demo" in capsys.readouterr().err and not (tmp_path / "out").exists()
