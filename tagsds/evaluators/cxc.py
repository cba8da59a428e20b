"""CxC (Crisscrossed Captions): R@N with the true pairs that people rated as such on COCO's test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tagsds.evaluators.console import DEFAULT_AT, text_table
from tagsds.evaluators.eccv import INTRO, tables
from tagsds.evaluators.metrics import recall_at
from tagsds.evaluators.recall import whole_numbers
from tagsds.evaluators.relevance import Queries, RelevanceEvaluator, places, scope
from tagsds.evaluators.section import Section

KEYS = [*(f"{side}_r{n}" for side in ("text", "image") for n in DEFAULT_AT), "rsum"]
HEADER = [*(f"R@{n}" for n in DEFAULT_AT), *(f"R@{n}" for n in DEFAULT_AT), "rsum"]


@dataclass(frozen=True)
class CxcSettings:
    """at: the N of R@N, in the results file; 1, 5 and 10 are always there, and are what is shown."""

    at: tuple[int, ...] = DEFAULT_AT

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", whole_numbers("cxc.at", self.at))


class Cxc(RelevanceEvaluator):
    """`cxc` of the results file."""

    name = "cxc"
    Settings = CxcSettings

    def of_side(self, scores: Tensor, queries: Queries) -> dict[str, float]:
        best = places(scores, queries, most=1)[:, 0]
        return {f"r{n}": recall_at(best, n) for n in self.settings.at}

    def total(self, figures: dict[str, float]) -> dict[str, float]:
        return figures | {"rsum": sum(figures[key] for key in KEYS[:-1])}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        sets = {"": results.get("cxc"), "ensemble": results.get("ensemble", {}).get("cxc")}
        rows = [
            [", ".join(filter(None, [name, scope(values)])) or "all of it", *(f"{values[key]:.1f}" for key in KEYS)]
            for name, values in sets.items()
            if values
        ]
        sides = [f"{side} R@{n}" for side in ("text", "image") for n in DEFAULT_AT]
        return text_table(["CxC, %", *sides, "rsum"], rows) if rows else None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        return Section("relevance", tables(runs, cls.name, "CxC", KEYS, HEADER), "ECCV Caption and CxC", INTRO)
