"""Results as plain text, for the console."""

from __future__ import annotations

from collections.abc import Sequence

RECALLS = ("text_r1", "text_r5", "text_r10", "image_r1", "image_r5", "image_r10", "rsum", "text_median", "image_median")
HEADERS = ("R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "rsum", "text", "image")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def recall_table(rows: dict[str, dict[str, float]]) -> str:
    """A row a set of recalls (`Recalls.as_dict`): per cent, then median ranks."""
    first = max([len("recall, %"), *map(len, rows)])
    body = [[name.ljust(first), *(f"{values[key]:5.1f}" for key in RECALLS)] for name, values in rows.items()]
    table = text_table(["recall, %".ljust(first), *HEADERS], body).splitlines()
    widths = [len(part) for part in table[1].split("  ")]
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    groups = {1: "text retrieval", 4: "image retrieval", 8: "median rank"}
    top = ""
    ends = {1: starts[4] - 2, 4: starts[7] - 2, 8: len(table[1])}
    for column, title in groups.items():
        room = ends[column] - starts[column]
        top = top.ljust(starts[column]) + title.center(room).rstrip()
    return "\n".join([top, *table])


def results_table(results: dict) -> str:
    """What `tagsds-evaluate` prints."""
    parts = []
    sets = {}
    if "recalls" in results:
        sets[f"{results['split']}, {results['images']} images"] = results["recalls"]
    if "coco_1k" in results:
        sets["COCO 1K, mean of 5 folds"] = results["coco_1k"]
    if sets:
        parts.append(recall_table(sets))
    if results.get("edits"):
        parts.append(edits_table(results["edits"], "true above edited caption"))
    if "ensemble" in results:
        parts += ensemble_tables(results["ensemble"])
    if "rerank" in results:
        parts += rerank_tables(results)
    if results["pairs_scored"]:
        rate = f"{results['pairs_per_second']:.0f} pairs/s"
        parts.append(f"{results['pairs_scored']} pairs in {results['seconds']:.1f} s ({rate})")
    return "\n\n".join(parts)


def edits_table(edits: dict[str, dict], title: str) -> str:
    """A row a kind of edit."""
    rows = [[kind, f"{e['accuracy']:.1f}", str(e["pairs"]), str(e["skipped"])] for kind, e in edits.items()]
    return text_table([title, "%", "pairs", "skipped"], rows)


def ensemble_tables(ensemble: dict) -> list[str]:
    """The single models, then their average in a table of its own: the two are not to be compared as equals."""
    title = f"ensemble of {len(ensemble['members'])}"
    parts = []
    if "recalls" in ensemble:
        parts.append(recall_table({f"single: {name}": values for name, values in ensemble["singles"].items()}))
        together = {title: ensemble["recalls"]}
        if "coco_1k" in ensemble:
            together[f"{title}, COCO 1K"] = ensemble["coco_1k"]
        parts.append(recall_table(together))
    if ensemble.get("edits"):
        parts.append(edits_table(ensemble["edits"], f"true above edited caption, {title}"))
    return parts


def rerank_tables(results: dict) -> list[str]:
    """Recalls of the matcher alone, of each K and of exact scoring; then what each of them costs."""
    recalls = {"matcher alone": results["shortlist"]["recalls"]}
    costs = []
    for row in results["rerank"]:
        recalls[f"its first {row['k']}, reranked"] = row["recalls"]
        seconds, inside = row["seconds"], row["recall_of_shortlist"]
        shares = [f"{inside['text']:.1f}", f"{inside['image']:.1f}"]
        cells = [str(row["pairs_scored"]), f"{seconds['matcher']:.1f}", f"{seconds['encoder']:.1f}", *shares]
        costs.append([f"its first {row['k']}, reranked", *cells])
    if "recalls" in results:
        recalls["exact"] = results["recalls"]
        costs.append(["exact", str(results["exact"]["pairs_scored"]), "-", f"{results['exact']['seconds']:.1f}", "-", "-"])
    header = ["cost", "pairs scored", "matcher, s", "encoder, s", "true caption in list, %", "true image in list, %"]
    return [recall_table(recalls), text_table(header, costs)]


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
