"""The report's contents, run by run put side by side: plain values and SVG texts for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tagsds.reporting import plots
from tagsds.reporting.runs import Run, Series, data_folder, setting
from tagsds.reporting.table import RECALLS

LOWER_IS_BETTER = ("text_median", "image_median")

# What a logged tag means, for a reader who has not seen the code. {} in a formula is the margin's hinge.
MEANINGS = {
    "loss/total": "weighted sum of the terms: what is minimised",
    "loss/t2i": "hard images for the caption: mean of [m + s(I⁻,T) − s(I,T)]₊",
    "loss/i2t": "hard captions for the image: mean of [m + s(I,T⁻) − s(I,T)]₊",
    "loss/syn": "written negatives: mean of [m + s(I,T̃) − s(I,T)]₊",
    "loss/mlm": "cross entropy at masked words, nats",
    "loss/disc": "was this word replaced? weighted cross entropy, nats",
    "loss/corr": "the original word from the written sentence, cross entropy, nats",
    "loss/itm": "does the image belong to the text? cross entropy, nats",
    "loss/mrfr": "hidden region features, mean squared error",
    "loss/mrckl": "hidden regions' class distribution, KL divergence, nats",
    "loss/mrc": "hidden regions' class, cross entropy, nats",
    "loss/wra": "word-region transport distance, true minus false pairs",
    "rank/true_above_image": "share of hard images below the true pair",
    "rank/true_above_caption": "share of hard captions below the true pair",
    "rank/true_above_synthetic": "share of written negatives below the true pair",
    "filter/written": "sentences written per caption",
    "filter/kept": "written sentences per caption that enter the loss: the hardest that passed the filter",
    "disc/accuracy_replaced": "share of replaced words that are found",
    "disc/accuracy_kept": "share of original words that are left alone",
    "corr/accuracy": "share of masked words restored from the written sentence",
    "lr": "learning rate",
    "gradient_norm": "length of the gradient before clipping",
    "epoch": "passes over the training captions",
    "memory/gib": "peak memory of one rank, GiB",
    "speed/true_pairs_per_s": "true pairs per second, all ranks",
    "speed/pair_forwards_per_s": "pairs through the encoder per second, mining included, all ranks",
}
GROUPS = {"loss": "Losses", "rank": "How often the true pair ranks above its negatives"}
SCORE_KINDS = {
    "true": "true pairs",
    "hard_image": "hardest images",
    "hard_caption": "hardest captions",
    "synthetic": "written negatives",
}


def run_rows(runs: Sequence[Run], colours: dict[str, int]) -> list[dict[str, Any]]:
    """A line a run: what it was."""
    rows = []
    for run in runs:
        data = data_folder(run)
        rows.append(
            {
                "name": run.name,
                "colour": colours[run.name],
                "recipe": setting(run.config, "recipe", "name"),
                "seed": setting(run.config, "seed"),
                "data": str(data) if data else setting(run.config, "data_folder"),
                "steps": run.steps or None,
                "time": duration(run.seconds) if run.seconds else None,
            }
        )
    return rows


def duration(seconds: float) -> str:
    """12 s, 3.5 min, 1.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def recall_tables(runs: Sequence[Run], colours: dict[str, int]) -> list[dict[str, Any]]:
    """A table a set of images that was ranked; unequal sets stay apart, because recall falls with their size, and so do
    single models and ensembles."""
    tables: dict[tuple, list[tuple[Run, dict[str, Any], dict[str, Any], str]]] = {}
    for run in runs:
        for result in run.results:
            for key, values, note in recalls_in(result):
                identity = (result["split"], key, values["images"], values["captions"])
                tables.setdefault(identity, []).append((run, result, values, note))
    out = []
    for (split, key, images, captions), entries in sorted(tables.items(), key=lambda item: item[0][:2], reverse=True):
        best = {
            name: (min if name in LOWER_IS_BETTER else max)(values[name] for _, _, values, _ in entries) for name in RECALLS
        }
        rows = [
            {
                "name": run.name,
                "colour": colours[run.name],
                "note": note,
                "cells": [{"value": values[name], "best": len(entries) > 1 and values[name] == best[name]} for name in RECALLS],
            }
            for run, _, values, note in entries
        ]
        title = "COCO 1K, mean of five folds" if key.endswith("coco_1k") else f"Split “{split}”"
        title += ", ensembles" if key.startswith("ensemble") else ""
        error = 50 / images**0.5, 50 / captions**0.5
        shared = max(result.get("shared_captions", 0) for _, result, _, _ in entries)
        out.append({"title": title, "images": images, "captions": captions, "rows": rows, "error": error,
                    "shared": shared, "chance": chance(images, captions)})  # fmt: skip
    return out


def recalls_in(result: dict[str, Any]) -> list[tuple[str, dict[str, float], str]]:
    """Every set of recalls of an evaluation: which it is, its figures, what is to be said of it."""
    ensemble = result.get("ensemble", {})
    members = f"average of {', '.join(ensemble.get('members', []))}"
    found = [(key, result[key], note_of(result)) for key in ("recalls", "coco_1k") if key in result]
    keys = {"recalls": "ensemble", "coco_1k": "ensemble of coco_1k"}
    return found + [(keys[key], ensemble[key], members) for key in keys if key in ensemble]


def rerankings(runs: Sequence[Run], colours: dict[str, int]) -> list[dict[str, Any]]:
    """A table an evaluation that reranked a matcher's shortlist: the matcher, every K, exact scoring; and their cost."""
    tables = []
    for run in runs:
        for result in run.results:
            if "rerank" not in result:
                continue
            rows = [{"label": "the matcher alone", "values": result["shortlist"]["recalls"], "cost": None, "inside": None}]
            for row in result["rerank"]:
                cost = row["pairs_scored"], duration(row["seconds"]["matcher"] + row["seconds"]["encoder"])
                rows.append({"label": f"its first {row['k']}, reranked", "values": row["recalls"], "cost": cost,
                             "inside": row["recall_of_shortlist"]})  # fmt: skip
            if "recalls" in result:
                cost = result["exact"]["pairs_scored"], duration(result["exact"]["seconds"])
                rows.append({"label": "every pair", "values": result["recalls"], "cost": cost, "inside": None})
            for entry in rows:
                entry["cells"] = [entry["values"][name] for name in RECALLS[:7]]
            tables.append({"run": run.name, "colour": colours[run.name], "split": result["split"], "rows": rows,
                           "images": result["images"], "captions": result["captions"],
                           "matcher": result["shortlist"].get("checkpoint")})  # fmt: skip
    return tables


def note_of(result: dict[str, Any]) -> str:
    """What is unusual about an evaluation."""
    source = result.get("provenance", {})
    notes = []
    if source.get("head") == "itm":
        notes.append("scored by the itm head")
    if source.get("dtype") not in (None, "fp32"):
        notes.append(f"scored in {source['dtype']}, not exact")
    return ", ".join(notes)


def chance(images: int, captions: int) -> list[float]:
    """Expected figures of random scores, in the order of RECALLS; the captions are taken as evenly spread."""
    own = max(round(captions / images), 1)
    missed = [1.0]  # probability that none of an image's own captions is among the first k
    while missed[-1] > 0.5 or len(missed) <= 10:
        k = len(missed) - 1
        missed.append(missed[-1] * max(captions - own - k, 0) / max(captions - k, 1))
    text = [100 * (1 - missed[k]) for k in (1, 5, 10)]
    image = [100 * min(k / images, 1.0) for k in (1, 5, 10)]
    text_median = next(k for k, value in enumerate(missed) if value <= 0.5)
    return [*text, *image, sum(text) + sum(image), text_median, (images + 1) / 2]


def edits(runs: Sequence[Run], colours: dict[str, int]) -> dict[str, Any] | None:
    """Accuracies by kind of edit; None where no run has any."""
    tables = {run.name: {k: e for result in run.results for k, e in result.get("edits", {}).items()} for run in runs}
    tables = {name: table for name, table in tables.items() if table}
    if not tables:
        return None
    kinds = sorted({kind for table in tables.values() for kind in table})
    rows: dict[str, list[plots.Interval | None]] = {}
    for name, table in tables.items():
        entries = [table.get(kind) for kind in kinds]
        rows[name] = [e and (e["accuracy"], *plots.wilson(e["accuracy"], e["pairs"])) for e in entries]
    counts = [", ".join({str(t[kind]["pairs"]): None for t in tables.values() if kind in t}) for kind in kinds]
    labels = [kind.replace("_", " ") for kind in kinds]
    return {
        "kinds": list(zip(labels, counts, strict=True)),
        "rows": [{"name": name, "colour": colours[name], "cells": values} for name, values in rows.items()],
        "plot": Markup(plots.bars(labels, rows, colours, "Accuracy by kind of edit")),
    }


def curve_groups(runs: Sequence[Run], colours: dict[str, int]) -> list[dict[str, Any]]:
    """Small multiples: the losses, the ranks, then everything else that was logged."""
    place = {tag: number for number, tag in enumerate(MEANINGS)}
    tags = sorted({tag for run in runs for tag in run.log}, key=lambda tag: (place.get(tag, len(place)), tag))
    groups: dict[str, list[dict[str, Any]]] = {}
    for tag in tags:
        head = tag.split("/", 1)[0]
        series = {run.name: run.log[tag] for run in runs if tag in run.log}
        bad = [name for name, values in series.items() if not all(map(np.isfinite, values.values()))]
        panel = {
            "tag": tag,
            "meaning": MEANINGS.get(tag, ""),
            "plot": Markup(plots.curves(series, colours, tag)),
            "last": [(colours[name], f"{end_of(values):.4g}") for name, values in series.items()],
            "bad": bad,
        }
        groups.setdefault(head if head in GROUPS else "", []).append(panel)
    titles = {**GROUPS, "": "Other counters"}
    return [{"title": titles[head], "folded": head == "", "panels": groups[head]} for head in titles if head in groups]


def end_of(series: Series) -> float:
    """The smoothed value at the end of a curve; NaN where nothing in it is finite."""
    values = np.array([value for value in series.values() if np.isfinite(value)])
    return float(plots.smooth(values)[-1]) if len(values) else float("nan")


def distributions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Histograms of scores, a run each: from training's examples.json, and from the evaluation."""
    out = []
    for run in runs:
        scores = {kind: values for kind, values in run.examples.get("scores", {}).items() if values}
        if scores:
            everything = np.concatenate([np.asarray(v, dtype=np.float64) for v in scores.values()])
            edges = np.histogram_bin_edges(everything, 50)
            kinds = [*(k for k in SCORE_KINDS if k in scores), *sorted(set(scores) - set(SCORE_KINDS))]
            rows, legend = [], []
            for number, kind in enumerate(kinds):
                counts = np.histogram(np.asarray(scores[kind], dtype=np.float64), edges)[0].astype(np.float64)
                rows.append((kind, edges, counts, plots.colour(number)))
                legend.append((plots.colour(number), SCORE_KINDS.get(kind, kind), len(scores[kind])))
            inside = everything.min() >= 0 and everything.max() <= 1
            label = "score s(I, T), the sigmoid of the ranking logit" if inside else "ranking logit"
            svg = plots.histogram(rows, label, f"{run.name}: scores in training")
            out.append({"run": run.name, "title": "true pairs and their negatives, as mined in training",
                        "legend": legend, "plot": Markup(svg)})  # fmt: skip
        for result in run.results:
            if table := result.get("score_histogram"):
                edges = np.asarray(table["edges"], dtype=np.float64)
                true, other = (np.asarray(table[kind], dtype=np.float64) for kind in ("true", "other"))
                title = f"every pair of split “{result['split']}”"
                svg = plots.histogram([("true", edges, true, 1), ("other", edges, other, 2)], table["unit"],
                                      f"{run.name}: {title}")  # fmt: skip
                legend = [(1, "true pairs", int(true.sum())), (2, "all other pairs", int(other.sum()))]
                out.append({"run": run.name, "title": title, "legend": legend, "plot": Markup(svg)})
    return out
