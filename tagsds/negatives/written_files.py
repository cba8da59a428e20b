"""The files of tagsds-write: blocks of captions joined into one result, and its figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tagsds.errors import UserError
from tagsds.files import atomic, read_json_object, write_json
from tagsds.formats.shape import Count, Of, Table, problem
from tagsds.negatives.sentences import FILTERS, KINDS, Negatives

CAPTION = {"id": Of(str), "score": Of(float), "negatives": Count()}
COUNTS = {"captions": Count(), "written": Count(), "short": Count(), "spare": Count(), "dropped": Table(Count())}
PART = {"entries": [Of(dict)], "captions": [CAPTION], "counts": COUNTS}


def count_block(sheets: Sequence[Negatives], number: int) -> dict[str, Any]:
    """What was written for some captions: candidates, dropped by each filter, left over because `number` was reached, and captions
    that have fewer than `number`."""
    return {
        "captions": len(sheets),
        "written": sum(sheet.written for sheet in sheets),
        "dropped": {name: sum(len(sheet.dropped[name]) for sheet in sheets) for name in FILTERS},
        "spare": sum(sheet.spare for sheet in sheets),
        "short": sum(len(sheet) < number for sheet in sheets),
    }


class Tally:
    """Figures that grow block by block."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.guessed: Counter[str] = Counter()  # by kind: negatives that the blind scorer tells from the caption; a tie is a half
        self.asked: Counter[str] = Counter()
        self.above: int = 0

    def add(self, part: dict[str, Any]) -> None:
        counts = part["counts"]
        self.counts.update({name: counts[name] for name in ("captions", "written", "spare", "short")})
        self.dropped.update(counts["dropped"])
        for entry in part["entries"]:
            self.kinds[entry["kind"]] += 1
            self.above += entry["score"] >= entry["caption_score"]
            if entry["blind"] is not None:
                self.asked[entry["kind"]] += 1
                self.guessed[entry["kind"]] += 2 * (entry["blind"] > 0) + (entry["blind"] == 0)

    def figures(self) -> dict[str, Any]:
        """Plain values; shares in per cent, None where nothing was asked."""
        kept = sum(self.kinds.values())
        shares = {kind: share(self.guessed[kind], 2 * self.asked[kind]) for kind in KINDS if self.asked[kind]}
        return {
            **{name: self.counts[name] for name in ("captions", "written")},
            "dropped": {name: self.dropped[name] for name in FILTERS},
            "spare": self.counts["spare"],
            "kept": kept,
            "captions_with_fewer": self.counts["short"],
            "kinds": {kind: self.kinds[kind] for kind in KINDS if self.kinds[kind]},
            "scored_as_high_as_the_caption": share(self.above, kept),
            "blind_prefers_the_caption": share(sum(self.guessed.values()), 2 * sum(self.asked.values())),
            "blind_by_kind": shares,
        }


def share(part: int, whole: int) -> float | None:
    """Per cent to two places."""
    return round(100 * part / whole, 2) if whole else None


def join_parts(folder: Path, parts: Iterable[Path], layout: str) -> dict[str, Any]:
    """All blocks in order as one result, a block in memory at a time (of SugarCrepe's layout, all). Returns the figures."""
    tally = Tally()
    if layout == "jsonl":
        with atomic(folder / "negatives.jsonl") as stream:
            for path in parts:
                part = read_part(path)
                tally.add(part)
                stream.writelines(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in part["entries"])
    elif layout == "shards":  # they are written already
        for path in parts:
            tally.add(read_part(path))
    else:
        kinds: dict[str, dict[str, dict[str, str]]] = {}
        for path in parts:
            part = read_part(path)
            tally.add(part)
            for entry in part["entries"]:
                rows = kinds.setdefault(entry["kind"], {})
                texts = {"caption": entry["caption"], "negative_caption": entry["text"]}
                rows[str(len(rows))] = {"filename": f"{entry['image']}.jpg", **texts}
        for kind, rows in kinds.items():
            write_json(folder / "edits" / f"{kind}.json", rows)
    return tally.figures()


def read_part(path: Path) -> dict[str, Any]:
    """A block. UserError for a damaged one."""
    remedy = "remove it and run the command again"
    part = read_json_object(path, remedy)
    if found := problem(part, PART):
        raise UserError(f"{path} is no block of negatives ({found}); {remedy}.")
    return part


def summary(figures: dict[str, Any]) -> str:
    """For the console."""
    dropped = ", ".join(f"{name} {count}" for name, count in figures["dropped"].items() if count)
    kinds = ", ".join(f"{kind} {count}" for kind, count in figures["kinds"].items())
    spare = f"not needed: {figures['spare']}"
    lines = [
        f"{figures['written']} candidates for {figures['captions']} captions; dropped: {dropped or 'none'}; {spare}",
        f"{figures['kept']} negatives ({kinds or 'none'}); {figures['captions_with_fewer']} captions have fewer than asked for",
    ]
    if figures["scored_as_high_as_the_caption"] is not None:
        lines.append(f"{figures['scored_as_high_as_the_caption']:.1f} % score as high as their caption or higher")
    if figures["blind_prefers_the_caption"] is not None:
        of_kinds = ", ".join(f"{kind} {value:.1f}" for kind, value in figures["blind_by_kind"].items())
        blind = figures["blind_prefers_the_caption"]
        lines.append(f"a blind scorer prefers the true caption in {blind:.1f} % of the pairs ({of_kinds}); 50 % is guessing")
    return "\n".join(lines)
