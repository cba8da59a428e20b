"""docs/results/scale.md is what the formulas say, and they say what hands say."""

from pathlib import Path

import pytest

from tests.bench.scale import MINED, Scale, candidates, page

PAGE = Path(__file__).parents[2] / "docs" / "results" / "scale.md"


def test_the_page_is_that_of_the_formulas():
    assert PAGE.read_text() == page(), "run python -m tests.bench.scale docs/results/scale.md"


def test_by_hand():
    million = Scale(1_000_000)
    assert million.shards == 2000 and million.shard_bytes == 500 * (36 * 4112 + 2304 + 1250)
    assert million.per_window == int(64 * 2**30 / 75_793_000) == 906 and million.windowed and not Scale(113_287).windowed
    assert million.steps == pytest.approx(19531.25) and candidates(million) == 16e9
    assert million.exact_pairs() / MINED / 86400 == pytest.approx(11.57, rel=1e-3)  # days
    assert million.index_flop() == pytest.approx(2048 * 65 * (1e6 * 5e6**0.5 + 5e6 * 1e3))
