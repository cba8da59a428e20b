"""docs/results/limits.md says what the rows in benchmarks/ say, and shows the picture that is drawn from them."""

from __future__ import annotations

import json

from tests.bench.limits import ROWS, svg
from tests.launch import ROOT

PAGE = ROOT / "docs" / "results" / "limits.md"


def test_the_picture_is_that_of_the_rows():
    assert (ROOT / "docs/results/limits.svg").read_text() == svg(), "run python -m tests.bench.limits docs/results/limits.svg"


def test_the_tables_are_those_of_the_rows():
    rows, page = json.loads(ROWS.read_text()), PAGE.read_text()
    for row in rows["changes"]:
        recalls = f"{row['train']:.0f} | {row['dev']:.0f} | {row['text_r1']:.1f} | {row['image_r1']:.1f}"
        assert f"| {row['change']} | {recalls} |" in page, row
    for row in rows["images"]:
        assert f"| {row['images']:,} | {row['train']:.0f} | {row['dev']:.0f} |" in page, row


def test_the_tables_of_later_rows():
    rows, page = json.loads((ROWS.parent / "2026-11-28-limits.json").read_text()), PAGE.read_text()
    for row in rows["held_out"]:
        losses = " | ".join(f"{row[f'{split}_{task}']:.2f}" for split in ("train", "dev") for task in ("itm", "mlm", "mrckl"))
        assert f"| {row['change']} | {losses} |" in page, row
    taught = json.loads((ROWS.parent / "2026-11-28-taught.json").read_text())["taught"]
    for row in [*rows["changes"], *taught]:
        assert f"| {row['change']} | {row['dev']:.0f} | {row['text_r1']:.1f} | {row['image_r1']:.1f} |" in page, row
