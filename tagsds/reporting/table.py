"""Results as plain text, for the console."""

from __future__ import annotations

from tagsds.evaluators import EVALUATORS
from tagsds.evaluators.console import text_table


def results_table(results: dict) -> str:
    """What `tagsds-evaluate` prints: the table of every evaluator that has one, then the speed."""
    parts = [table for evaluator in EVALUATORS.values() if (table := evaluator.table(results))]
    if results["pairs_scored"]:
        rate = f"{results['pairs_per_second']:.0f} pairs/s"
        parts.append(f"{results['pairs_scored']} pairs in {results['seconds']:.1f} s ({rate})")
    return "\n\n".join(parts)


def comparison_table(stages: dict) -> str:
    """Stages side by side, mean (and standard deviation over the seeds where there are several) of each figure:
    {stage: {figure: {"seeds": [..], "mean": float, "std": float}}}."""
    figures = [name for name in next(iter(stages.values())) if name not in ("images", "captions")]
    rows = []
    for name in figures:
        cells = []
        for values in stages.values():
            figure = values.get(name, {"seeds": [], "mean": float("nan"), "std": 0.0})
            spread = f" ± {figure['std']:.1f}" if len(figure["seeds"]) > 1 else ""
            cells.append(f"{figure['mean']:.1f}{spread}")
        rows.append([name, *cells])
    return text_table(["test split, %", *stages], rows)
