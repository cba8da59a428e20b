"""The console's tables."""

from tagsds.evaluators.console import recall_columns, text_table
from tagsds.reporting.table import results_table

RECALLS = recall_columns([1, 5, 10])[0]

RESULTS = {
    "split": "test",
    "images": 1000,
    "recalls": {name: float(i) for i, name in enumerate(RECALLS)} | {"rsum": 412.34},
    "edits": {"replace_obj": {"accuracy": 81.25, "pairs": 16, "skipped": 2}},
    "pairs_scored": 5000000,
    "seconds": 10.0,
    "pairs_per_second": 500000.0,
}


def test_columns_are_aligned():
    assert text_table(["name", "%"], [["a", "1.0"], ["bcdef", "100.0"]]).splitlines() == [
        "name       %",
        "-----  -----",
        "a        1.0",
        "bcdef  100.0",
    ]


def test_everything_is_in_the_table():
    lines = results_table(RESULTS).splitlines()
    groups, header, rule, row = lines[:4]
    assert groups.split() == ["text", "retrieval", "image", "retrieval", "median", "rank"]
    assert header.split()[2:] == ["R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rsum", "text", "image"]
    assert row.split()[:3] == ["test,", "1000", "images"] and "412.3" in row
    # each title stands over its columns
    assert header.index("R@1") <= groups.index("text") < groups.index("image") < header.index("rsum")
    assert len({len(line) for line in (header, rule, row)}) == 1
    assert any(line.split() == ["replace_obj", "81.2", "16", "2"] for line in lines)
    assert lines[-1] == "5000000 pairs in 10.0 s (500000 pairs/s)"


def test_folds_and_no_recalls():
    folds = results_table(RESULTS | {"coco_1k": RESULTS["recalls"]})
    assert "COCO 1K, mean of 5 folds" in folds
    without = {key: value for key, value in RESULTS.items() if key not in ("recalls", "images", "edits")}
    assert results_table(without) == "5000000 pairs in 10.0 s (500000 pairs/s)"
