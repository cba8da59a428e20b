"""The load run in small: a few clients at a real server, nothing lost, and figures that agree with one another."""

from __future__ import annotations

from tests.bench.serve import MIX, measure, parse, percentiles


def test_a_few_clients_lose_nothing(encoder_run, matcher_run, world):
    words = ["--checkpoint", encoder_run, "--data", world, "--matcher", matcher_run, "--clients", 8, "--seconds", 6, "--threads", 1]
    row = measure(parse([str(word) for word in words]))
    assert row["lost"] == 0 and row["what_was_lost"] == {} and row["left_waiting"] == 0
    assert row["requests"] > 40 and set(row["milliseconds"]) == {"all", *MIX}
    assert sum(row["milliseconds"][kind]["count"] for kind in MIX) == row["requests"] == row["milliseconds"]["all"]["count"]
    assert row["rss_mib"]["last"] < row["rss_mib"]["first"] + 60


def test_percentiles_by_hand() -> None:
    found = percentiles([n / 1000 for n in range(1, 101)])
    assert found == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "most": 100.0, "count": 100}
    assert percentiles([0.5]) == {"p50": 500.0, "p95": 500.0, "p99": 500.0, "most": 500.0, "count": 1}
