"""ECCV Caption: mAP@R, R-Precision and R@1 with the true pairs that people and machines added to COCO's test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tagsds.evaluators.console import text_table
from tagsds.evaluators.recall import every, note_of
from tagsds.evaluators.relevance import Queries, RelevanceEvaluator, places, precision_figures, scope
from tagsds.evaluators.section import Cell, Row, Section, Table, mark_best

KEYS = [f"{side}_{name}" for side in ("text", "image") for name in ("map_at_r", "r_precision", "r1")]
HEADER = ["mAP@R", "R-Prec.", "R@1"] * 2
INTRO = (
    "COCO's captions are true of more images than their own. ECCV Caption (arXiv 2204.03359) and CxC (arXiv 2004.15020) name "
    "further true pairs of the Karpathy test split. With R true items of a query, R-Precision is the percentage of them among the "
    "first R, and mAP@R also counts how early they come. Equal scores count against us."
)


class Eccv(RelevanceEvaluator):
    """`eccv` of the results file."""

    name = "eccv"

    def of_side(self, scores: Tensor, queries: Queries) -> dict[str, float]:
        return precision_figures(places(scores, queries), queries.wanted)

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        sets = {"": results.get("eccv"), "ensemble": results.get("ensemble", {}).get("eccv")}
        rows = [
            [", ".join(filter(None, [name, scope(values)])) or "all of it", *(f"{values[key]:.1f}" for key in KEYS)]
            for name, values in sets.items()
            if values
        ]
        sides = ["text " + name for name in HEADER[:3]] + ["image " + name for name in HEADER[3:]]
        return text_table(["ECCV Caption, %", *sides], rows) if rows else None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        return Section("relevance", tables(runs, cls.name, "ECCV Caption", KEYS, HEADER), "ECCV Caption and CxC", INTRO)


def tables(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], name: str, title: str, keys: Sequence[str], header: Sequence[str]
) -> list[Any]:
    """A table a set of images and captions: a row a run, and a row an ensemble."""
    sets: dict[tuple[int, int], list[tuple[str, Mapping[str, Any], str]]] = {}
    for run, result in every(runs):
        average = result.get("ensemble", {})
        for of, note in ((result, note_of(result)), (average, f"average of {', '.join(average.get('members', []))}")):
            if name in of:
                values = of[name]
                sets.setdefault((values["images"], values["captions"]), []).append((run, values, note))
    out = []
    for (images, captions), entries in sorted(sets.items()):
        rows = [Row(run, [Cell(f"{values[key]:.1f}") for key in keys], run, note) for run, values, note in entries]
        mark_best(rows, [[values[key] for key in keys] for _, values, _ in entries], [False] * len(keys))
        half = len([key for key in keys if key.startswith("text_")])
        groups = [("text retrieval, %", half), ("image retrieval, %", half), *([("", 1)] if len(keys) > 2 * half else [])]
        partial = scope(entries[0][1])
        note = f"{entries[0][1]['text_queries']} images and {entries[0][1]['image_queries']} captions are queries."
        note += f" The corpus lacks some of the benchmark ({partial}), so these are not its figures." if partial else ""
        heading = f"{title}{', partial' if partial else ''}: {images} images, {captions} captions"
        out.append(Table(heading, "run", header, rows, groups, note=note))
    return out
