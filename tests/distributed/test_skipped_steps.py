"""A loss that is not finite on one rank: the step is left out on all, in every ZeRO stage, and its captions are named."""

from __future__ import annotations

import json
from pathlib import Path

from tests.launch import ROOT, run_two

PROGRAM = Path(__file__).with_name("skipped_steps.py")
FILES = ["zero0", "zero1", "zero2", "zero2_bf16", "zero3_bf16"]


def test_weights_and_moments_stay_and_captions_are_named(tmp_path: Path) -> None:
    """The steps behind the one that is left out end at the weights of a run that never saw it: its moments and Adam's count are
    untouched. Only the captions of the micro-batch with the bad loss are named."""
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    (tmp_path / "zero3.json").write_text(json.dumps(zero3))
    files = [*(ROOT / "ds_configs" / f"{name}.json" for name in FILES), tmp_path / "zero3.json"]
    printed = [json.loads(out.splitlines()[-1]) for out in run_two(PROGRAM, *files)]
    for result in printed:
        assert len(result["found"]) == 2 * len(files)
        for name, (distance, skipped, in_a_row, said) in result["found"].items():
            assert (distance, skipped, in_a_row) == (0.0, 1, 0), name
            assert said == ["step 2 was left out: a loss is not finite; captions c9 (image i9), c10 (image i10), c11 (image i11)"]
        assert result["ended"].startswith("step 4 was left out")
        assert "3 in a row (safety.skip_steps=2) end the run" in result["ended"]
    rows = printed[0]["rows"]
    assert [row["caption"] for row in rows[0]["captions"]] == ["c9", "c10", "c11"] and rows[0]["step"] == 2
