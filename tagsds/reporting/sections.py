"""The report's contents, run by run put side by side: plain values and SVG texts for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tagsds.evaluators import EVALUATORS
from tagsds.evaluators.console import duration
from tagsds.evaluators.section import Bars, Table
from tagsds.reporting import plots
from tagsds.reporting.runs import Run, Series, data_folder, setting

# What a logged tag means, for a reader who has not seen the code. {} in a formula is the margin's hinge.
MEANINGS = {
    "validate/recalls/rsum": "sum of the six recalls on the first dev images",
    **{f"validate/recalls/{side}_r{n}": f"R@{n}, {side} retrieval, %" for side in ("text", "image") for n in (1, 5, 10)},
    "validate/recalls/text_median": "median rank, text retrieval",
    "validate/recalls/image_median": "median rank, image retrieval",
    "loss/total": "weighted sum of the terms: what is minimised",
    "loss/t2i": "hard images for the caption: mean of [m + s(I⁻,T) − s(I,T)]₊",
    "loss/i2t": "hard captions for the image: mean of [m + s(I,T⁻) − s(I,T)]₊",
    "loss/syn": "written negatives: mean of [m + s(I,T̃) − s(I,T)]₊",
    "loss/contrast_syn": "written negatives: cross entropy of the true sentence among them, nats",
    "loss/contrast_t2i": "cross entropy of the image among its caption's hard ones, nats",
    "loss/contrast_i2t": "cross entropy of the caption among its image's hard ones, nats",
    "loss/distil_t2i": "hard images: KL divergence from the teachers' softmax, half of it, nats",
    "loss/distil_i2t": "hard captions: KL divergence from the teachers' softmax, half of it, nats",
    "loss/distil_syn": "written negatives: KL divergence from the teachers' softmax, nats",
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
    "speed/validation_s": "seconds of a validation",
}
GROUPS = {
    "validate": "Validation during training: the first images of the dev split",
    "loss": "Losses",
    "rank": "How often the true pair ranks above its negatives",
}
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


def evaluations(runs: Sequence[Run], colours: dict[str, int]) -> list[dict[str, Any]]:
    """What every evaluator shows of the runs, in the order of the registry; sections of one id become one."""
    results = {run.name: run.results for run in runs}
    found = [section for evaluator in EVALUATORS.values() if (section := evaluator.section(results))]
    sections: dict[str, dict[str, Any]] = {}
    for section in found:
        of = sections.setdefault(section.id, {"id": section.id, "title": "", "intro": "", "absent": "", "parts": []})
        of |= {name: of[name] or getattr(section, name) for name in ("title", "intro", "absent")}
        of["parts"] += [shown(part, colours) for part in section.parts]
    return [section for section in sections.values() if section["parts"] or section["absent"]]


def shown(part: Table | Bars, colours: dict[str, int]) -> dict[str, Any]:
    """A table as it is; bars as a plot."""
    if isinstance(part, Bars):
        return {"plot": Markup(plots.bars(part.labels, part.rows, colours, part.title))}
    return {"table": part}


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
