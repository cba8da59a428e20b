"""What the report shows of an image: its picture from a folder or from the shards, or its boxes."""

import json
import re

import numpy as np
import pytest

from tagsds import evaluate, report
from tagsds.errors import UserError
from tagsds.reporting.boxes import MOST_BOXES, boxes_svg, drawn_regions, sentence_of
from tests import tiny_corpus as tiny
from tests.browser import browser, contrast_failures, hidden_width
from tests.test_report import EXAMPLES, check_page, write_log


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluation on shards without pictures, with written negatives."""
    root = tmp_path_factory.mktemp("run")
    shards = tiny.write_shards(root / "shards", pictures=False)
    tiny.write_checkpoint(root / "tags" / "export")
    edits = tiny.write_edits(root / "edits" / "replace_obj.json")
    evaluate.main(["--checkpoint", str(root / "tags"), "--data", str(shards), "--pairs", str(edits)])
    write_log(root / "tags" / "log.jsonl")
    (root / "tags" / "examples.json").write_text(json.dumps(EXAMPLES))
    return root / "tags"


def drawings(html):
    return re.findall(r'<svg class="boxes".*?</svg>', html)


def test_shards_without_pictures_show_their_boxes(run, tmp_path):
    report.main([str(run), "--output", str(tmp_path / "report.html")])
    html = (tmp_path / "report.html").read_text()
    page = check_page(html)
    assert not page.pictures and "drawn from their boxes" in page.texts["rankings"]
    assert "no picture in the shards" not in page.texts["rankings"]
    assert "image not-in-the-shards, no picture in the shards" in page.texts["negatives"]  # neither is there
    shown = json.loads((run / "results-test.json").read_text())["examples"]
    absent = sum(not any(top["true"] for top in example["top"]) for example in shown)
    assert len(drawings(html)) == 5 * len(shown) + absent + 1  # the last is that of the written negatives
    boxes, names, aspect = drawn_regions(run.parent / "shards", [tiny.key(1)])[tiny.key(1)]
    assert boxes_svg(boxes, names, aspect) == drawings(html)[-1]
    assert f"<title>{sentence_of(names)}</title>" in drawings(html)[-1]
    assert html.count("<image") == 0 and len(html) < 400_000


def test_pictures_of_a_folder_come_first(run, tmp_path):
    for image in range(1, 8):
        (tmp_path / f"COCO_val2014_{image:012d}.png").write_bytes(tiny.picture("red"))
    (tmp_path / f"{tiny.key(1)}.jpg").write_bytes(b"no picture")  # found first, and cannot be decoded
    report.main([str(run), "--pictures", str(tmp_path), "--output", str(tmp_path / "report.html")])
    html = (tmp_path / "report.html").read_text()
    page = check_page(html)
    shown = json.loads((run / "results-test.json").read_text())["examples"]
    keys = [top["image"] for example in shown for top in example["top"]]
    keys += [example["image"] for example in shown if not any(top["true"] for top in example["top"])]
    drawn = sum(key in (tiny.key(0), tiny.key(1)) for key in keys)
    assert 0 < drawn < len(keys) and len(page.pictures["rankings"]) == len(keys) - drawn
    assert len(drawings(html)) == drawn + 1  # image 1 has a written negative
    with pytest.raises(UserError, match=r"--pictures .*nowhere is no folder"):
        report.write_report([run], tmp_path / "r.html", pictures=tmp_path / "nowhere")
    assert not (tmp_path / "r.html").exists()


def test_pictures_of_a_folder_without_shards(run, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    results = json.loads((run / "results-test.json").read_text())
    results["provenance"]["data"] = str(tmp_path / "gone")
    (moved / "results-test.json").write_text(json.dumps(results))
    for image in range(8):
        (tmp_path / f"{image}.png").write_bytes(tiny.picture("blue"))
    report.write_report([moved], tmp_path / "report.html", pictures=tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert len(check_page(html).pictures["rankings"]) >= 40 and not drawings(html) and "drawn from their boxes" not in html


def test_a_drawing_is_bound_in_size():
    corners = np.sort(np.random.default_rng(0).random((500, 2, 2)), axis=1).reshape(-1, 4)
    svg = boxes_svg(corners, ["large stalactite"] * 500)
    assert svg.count("<g>") == MOST_BOXES and len(svg) < 25_000
    assert "<title>Boxes of 500 large stalactites.</title>" in svg


@pytest.mark.parametrize("width, dark", [(400, False), (400, True), (1400, False), (1400, True)])
def test_the_page_in_a_browser(run, tmp_path, width, dark):
    (tmp_path / f"{tiny.key(2)}.png").write_bytes(tiny.picture("red"))
    report.write_report([run], tmp_path / "report.html", pictures=tmp_path)
    with browser(width, dark=dark) as driver:
        driver.get((tmp_path / "report.html").as_uri())
        driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert hidden_width(driver) == 0 and contrast_failures(driver) == []
        cut = """return [...document.querySelectorAll('figure, figcaption, .caption, .note, p, h1, h2, h3, .sentence, .word')]
            .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline').map(e => e.className)"""
        assert driver.execute_script(cut) == []
        assert (
            driver.execute_script("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
            == 0
        )
        names = driver.execute_script(
            "return [...document.querySelectorAll('svg.boxes')].map(e => e.querySelector('title').textContent)"
        )
        assert names and all(name.startswith(("Boxes of", "Box of")) for name in names)
