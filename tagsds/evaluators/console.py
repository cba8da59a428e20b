"""Tables of plain text, for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

DEFAULT_AT = (1, 5, 10)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def recalled_at(sets: Iterable[Mapping[str, float]]) -> list[int]:
    """Every N for which some of the sets of recalls has `text_rN`, ascending."""
    names = {name for values in sets for name in values if name.startswith("text_r") and name[6:].isdecimal()}
    return sorted(int(name[6:]) for name in names)


def recall_columns(at: Sequence[int]) -> tuple[list[str], list[str]]:
    """(keys of a set of recalls, their headers): R@N of text and of image retrieval, rsum, median ranks."""
    keys = [f"{side}_r{n}" for side in ("text", "image") for n in at]
    return [*keys, "rsum", "text_median", "image_median"], [*[f"R@{n}" for n in at] * 2, "rsum", "text", "image"]


def recall_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A row a set of recalls (`Recalls.as_dict`): per cent, then median ranks; "-" where a set lacks an R@N."""
    at = recalled_at(rows.values())
    keys, headers = recall_columns(at)
    first = max([len("recall, %"), *map(len, rows)])
    body = [
        [name.ljust(first), *(f"{values[key]:5.1f}" if key in values else "-" for key in keys)] for name, values in rows.items()
    ]
    table = text_table(["recall, %".ljust(first), *headers], body).splitlines()
    widths = [len(part) for part in table[1].split("  ")]
    starts = [sum(widths[:i]) + 2 * i for i in range(len(widths))]
    image, rsum, median = 1 + len(at), 1 + 2 * len(at), 2 + 2 * len(at)
    groups = {1: "text retrieval", image: "image retrieval", median: "median rank"}
    top = ""
    ends = {1: starts[image] - 2, image: starts[rsum] - 2, median: len(table[1])}
    for column, title in groups.items():
        room = ends[column] - starts[column]
        top = top.ljust(starts[column]) + title.center(room).rstrip()
    return "\n".join([top, *table])


def duration(seconds: float) -> str:
    """12 s, 3.5 min, 1.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
