"""R@N and median ranks in both directions, a sample of rankings, the distribution of scores."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.errors import UserError
from tagsds.evaluators.console import DEFAULT_AT, recall_columns, recall_table, recalled_at
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.protocol import Evaluator, Subject
from tagsds.evaluators.rankings import ranking_examples, score_histogram
from tagsds.evaluators.section import Cell, Row, Section, Table, mark_best

LOWER_IS_BETTER = ("text_median", "image_median")
INTRO = (
    "R@K is the percentage of queries whose true item is among the first K. In text retrieval an image is the query "
    "and the best of its own captions counts; in image retrieval a caption is the query. Every image is scored with every "
    "caption; an equal score counts against us. rsum adds the percentages at 1, 5 and 10; a median rank of 1 is perfect."
)
ABSENT = "No run has been evaluated for retrieval: no results file has recalls. Run tagsds-evaluate on its checkpoint."
Entry = tuple[str, Mapping[str, Any], Mapping[str, float], str]  # run, its results, its recalls, what is to be said of it


def whole_numbers(name: str, at: Sequence[int]) -> tuple[int, ...]:
    """`at` with 1, 5 and 10, ascending. UserError for a value that is not a whole number of at least 1."""
    for n in at:
        if not isinstance(n, int) or n < 1:
            raise UserError(f"{name} holds {n!r}; give whole numbers of at least 1.")
    return tuple(sorted({*at, *DEFAULT_AT}))


@dataclass(frozen=True)
class RecallSettings:
    """at: the N of R@N. 1, 5 and 10 are always there; rsum is the sum of their six percentages, whatever else is asked for."""

    at: tuple[int, ...] = DEFAULT_AT

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", whole_numbers("recall.at", self.at))


class Recall(Evaluator):
    """`recalls` and `shared_captions`, `examples`, `score_histogram` of the results file."""

    name = "recall"
    Settings = RecallSettings

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--recall-at", type=int, nargs="+", default=[], metavar="N", help="R@N for these N too (1 5 10)")

    @classmethod
    def check_options(cls, options: argparse.Namespace) -> None:
        for n in options.recall_at:
            if n < 1:
                raise UserError(f"--recall-at is {n}; give a whole number of at least 1.")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return options.evaluators is None and not options.no_retrieval and not options.no_exact

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"at": (*DEFAULT_AT, *options.recall_at)}

    def headline(self, subject: Subject) -> dict[str, Any]:
        return {"recalls": recalls(subject.matrix, subject.image_of_caption, self.settings.at).as_dict()}

    def figures(self, subject: Subject) -> dict[str, Any]:
        scores, owners, bank = subject.matrix, subject.image_of_caption, subject.bank
        return {
            **self.headline(subject),
            "shared_captions": shared_captions(bank, subject.captions),
            "examples": ranking_examples(scores, owners, bank, subject.captions),
            "score_histogram": score_histogram(scores, owners, unit=subject.model.score_unit),
        }

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        if "recalls" not in results:
            return None
        return recall_table({f"{results['split']}, {results['images']} images": results["recalls"]})

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        entries = [(*found, result["recalls"], note_of(result)) for found in every(runs) if "recalls" in (result := found[1])]
        return Section("recall", recall_tables(entries, "Split “{split}”"), "Recall", INTRO, ABSENT)


def shared_captions(bank: Bank, captions: Tensor) -> int:
    """How many of the captions (int64 [C]) another image has word for word: rounding orders those."""
    owners: dict[str, set[int]] = {}
    images = bank.image_of_caption[captions].tolist()
    for caption, image in zip(captions.tolist(), images, strict=True):
        owners.setdefault(bank.texts[caption], set()).add(image)
    return sum(len(owners[bank.texts[caption]]) > 1 for caption in captions.tolist())


def every(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(run, results file) of every results file."""
    return ((run, result) for run, results in runs.items() for result in results)


def recall_tables(entries: Sequence[Entry], title: str) -> list[Table | Any]:
    """A table a set of images that was ranked; unequal sets stay apart, because recall falls with their size."""
    sets: dict[tuple[str, int, int], list[Entry]] = {}
    for entry in entries:
        _, result, values, _ = entry
        sets.setdefault((result["split"], int(values["images"]), int(values["captions"])), []).append(entry)
    return [one_table(title.format(split=key[0]), key[1], key[2], sets[key]) for key in sorted(sets, key=lambda key: key[0])]


def one_table(title: str, images: int, captions: int, entries: Sequence[Entry]) -> Table:
    """A row a run, then what chance gives."""
    at = recalled_at(values for _, _, values, _ in entries)
    keys, header = recall_columns(at)
    rows = [Row(run, cells_of(values, keys), run, note) for run, _, values, note in entries]
    if all(key in values for _, _, values, _ in entries for key in keys):
        mark_best(rows, [[values[key] for key in keys] for _, _, values, _ in entries], [key in LOWER_IS_BETTER for key in keys])
    rows.append(Row("chance", [Cell(f"{value:.1f}") for value in chance(images, captions, at)], chance=True))
    errors = f"± {50 / images**0.5:.1f} points (text) and ± {50 / captions**0.5:.1f} points (image)"
    note = f"Sampling error of one percentage, at most: {errors}, one standard error."
    if len(entries) > 1:
        note += " The best of each column is bold."
    if shared := max(result.get("shared_captions", 0) for _, result, _, _ in entries):
        note += f" {shared} captions stand word for word at another image too: which of the two ranks first is chance."
    return Table(f"{title}: {images} images, {captions} captions", "run", header, rows, recall_groups(at), note=note)


def recall_groups(at: Sequence[int]) -> list[tuple[str, int]]:
    """Over the columns of `recall_columns`."""
    return [("text retrieval, %", len(at)), ("image retrieval, %", len(at)), ("", 1), ("median rank", 2)]


def cells_of(values: Mapping[str, float], keys: Sequence[str]) -> list[Cell]:
    return [Cell(f"{values[key]:.1f}" if key in values else "–") for key in keys]


def note_of(result: Mapping[str, Any]) -> str:
    """What is unusual about an evaluation."""
    source = result.get("provenance", {})
    notes = []
    if source.get("head") == "itm":
        notes.append("scored by the itm head")
    if source.get("dtype") not in (None, "fp32"):
        notes.append(f"scored in {source['dtype']}, not exact")
    return ", ".join(notes)


def chance(images: int, captions: int, at: Sequence[int] = DEFAULT_AT) -> list[float]:
    """Expected figures of random scores, in the order of `recall_columns`; the captions are taken as evenly spread."""
    own = max(round(captions / images), 1)
    missed = [1.0]  # probability that none of an image's own captions is among the first k
    while missed[-1] > 0.5 or len(missed) <= max(at):
        k = len(missed) - 1
        missed.append(missed[-1] * max(captions - own - k, 0) / max(captions - k, 1))
    text = {k: 100 * (1 - missed[k]) for k in at}
    image = {k: 100 * min(k / images, 1.0) for k in at}
    rsum = sum(side[k] for side in (text, image) for k in DEFAULT_AT)
    text_median = next(k for k, value in enumerate(missed) if value <= 0.5)
    return [*text.values(), *image.values(), rsum, text_median, (images + 1) / 2]
