"""Scores of true and edited captions with their images."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.words import sentence_table
from tagsds.errors import UserError
from tagsds.evaluators.console import text_table
from tagsds.evaluators.metrics import pair_accuracy, wilson
from tagsds.evaluators.pairs_file import EditPair, EditSet, list_files, read_pairs
from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.section import Bars, Cell, Interval, Row, Section, Table
from tagsds.models.load import positions_of_model
from tagsds.ranks import World
from tagsds.scoring.protocol import PairScorer

INTRO = (
    "Each pair is a true caption and the same caption with one thing changed. The figure is the percentage of pairs in which the "
    "true caption scores strictly higher with its image; guessing reaches 50 %. Lines are 95 % intervals (Wilson)."
)


def score_edits(
    scorer: PairScorer, bank: Bank, tokenizer: Any, pairs: Sequence[EditPair], world: World, progress: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Scores of the true and the false captions with their images, two [N]; None on all ranks but the first."""
    every = [text for pair in pairs for text in (pair.caption, pair.negative)]  # all ranks meet the same mistakes
    whole = tokenize_texts(tokenizer, every, positions_of_model(scorer.model.config))
    share = world.share(torch.arange(len(pairs)))
    mine = share.tolist()
    part = torch.empty(len(mine), 2, device=bank.device)
    if mine:
        table = whole.select(torch.stack([2 * share, 2 * share + 1], dim=1).flatten()).to(bank.device)
        images = torch.tensor([pairs[i].image for i in mine], device=bank.device)
        rows, image_of_row = torch.unique(images, return_inverse=True)
        text_of_pair = torch.arange(2 * len(mine), device=bank.device)
        packed = Pairs(table, bank.image_table(rows), text_of_pair, image_of_row.repeat_interleave(2))
        part = scorer(packed, progress=progress and world.is_main).view(-1, 2)
    both = world.gather(part, len(pairs))
    return (None, None) if both is None else (both[:, 0], both[:, 1])


def tokenize_texts(tokenizer: Any, texts: list[str], positions: int | None) -> Ragged:
    """Word pieces with [CLS] and [SEP], int64. UserError for a text longer than the model has positions (None: no limit)."""
    return sentence_table(tokenizer, texts, positions, " of --pairs", "shorten it or remove the pair")


def accuracies(edits: Sequence[EditSet], scores: Sequence[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Any]]:
    """By kind of edit, from its true and false scores, two [N]."""
    return {
        kind.kind: {"accuracy": pair_accuracy(true, false), "pairs": len(kind.pairs), "skipped": kind.skipped}
        for kind, (true, false) in zip(edits, scores, strict=True)
    }


@dataclass(frozen=True)
class EditsSettings:
    """files: JSON files in SugarCrepe's layout, or folders of them; a file is a kind of edit.
    skip_missing: leave out pairs whose image is not in the split, else they are an error."""

    files: tuple[Path, ...]
    skip_missing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(Path(file) for file in self.files))


class Edits(Evaluator):
    """`edits` of the results file. Any image of the bank may be meant, whether it is ranked or not."""

    name = "edits"
    Settings = EditsSettings
    ranks = False
    needs_matrix = False
    any_image = True

    def __init__(self, settings: EditsSettings) -> None:
        super().__init__(settings)
        self.kinds: list[EditSet] = []

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--pairs", type=Path, nargs="+", default=[], metavar="FILE", help="edited captions, JSON")
        parser.add_argument("--skip-missing-pairs", action="store_true", help="leave out pairs of images outside the split")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return bool(options.pairs)

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"files": options.pairs, "skip_missing": options.skip_missing_pairs} if options.pairs else {}

    def check(self, plan: Plan) -> None:
        for file in list_files(self.settings.files):
            plan.manifest.check_edits(file)

    def prepare(self, subject: Subject) -> None:
        self.kinds = read_pairs(self.settings.files, subject.bank.keys, self.settings.skip_missing)

    def score(self, subject: Subject) -> None:
        for kind in self.kinds:
            subject.once(key_of(kind), 2 * len(kind.pairs), partial(score_kind, subject, kind))

    def headline(self, subject: Subject) -> dict[str, Any]:
        scores = [subject.scores[key_of(kind)] for kind in self.kinds]
        return {"edits": accuracies(self.kinds, [(both[:, 0], both[:, 1]) for both in scores])}

    def sources(self) -> dict[str, Any]:
        return {"pairs": [str(kind.file) for kind in self.kinds]}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        return edits_table(results["edits"], "true above edited caption") if results.get("edits") else None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        tables = {run: {k: e for result in results for k, e in result.get("edits", {}).items()} for run, results in runs.items()}
        tables = {run: table for run, table in tables.items() if table}
        absent = "No run has been evaluated on edited captions. Give tagsds-evaluate a file or folder of them with --pairs."
        return Section("edits", parts_of(tables) if tables else [], "Edited captions", INTRO, absent)


class JudgeOfEdits(Evaluator):
    """Base of evaluators that judge the pairs of the evaluator `edits` beside them by other means, and give a row of figures, per
    cent, for each kind of edit: {kind: {column: figure or None}} under their name in the results file.

    columns         {figure: its title}
    signed          figures that are shown with their sign
    title, intro    of its section of the report
    """

    ranks = False
    needs_matrix = False
    columns: ClassVar[Mapping[str, str]]
    signed: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str]
    intro: ClassVar[str]

    @property
    def kinds(self) -> Sequence[EditSet]:
        return next(other.kinds for other in self.beside if isinstance(other, Edits))

    def check(self, plan: Plan) -> None:
        if not any(isinstance(other, Edits) for other in self.beside):
            raise UserError(f"--{self.name} judges edited captions; give files of them with --pairs.")

    @classmethod
    def cells_of(cls, entry: Mapping[str, Any]) -> list[str]:
        """A row of figures; a dash for what was not or cannot be measured, and where an older file has none."""
        values = [(key, entry.get(key)) for key in cls.columns]
        return ["–" if value is None else f"{value:{'+' if key in cls.signed else ''}.1f}" for key, value in values]

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        if not results.get(cls.name):
            return None
        rows = [[kind, *cls.cells_of(entry)] for kind, entry in results[cls.name].items()]
        return text_table(["true above edited caption, %", *cls.columns.values()], rows)

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section | None:
        tables: list[Table | Bars] = []
        for run, found in ((run, result.get(cls.name)) for run, results in runs.items() for result in results):
            if found:
                rows = [Row(kind, [Cell(cell) for cell in cls.cells_of(entry)]) for kind, entry in found.items()]
                tables.append(Table(run, "kind of edit", list(cls.columns.values()), rows, run=run))
        return Section(cls.name, tables, cls.title, cls.intro) if tables else None


def key_of(kind: EditSet) -> str:
    """Of its scores in the subject."""
    return f"edits/{kind.kind}"


def score_kind(subject: Subject, kind: EditSet) -> Tensor | None:
    """Collective: [N, 2] of a kind's true and false captions; None on all ranks but the first."""
    true, false = score_edits(
        subject.pair_scorer, subject.bank, subject.tokenizer, kind.pairs, subject.world, subject.progress
    )
    return None if true is None or false is None else torch.stack([true, false], dim=1)


def edits_table(edits: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """A row a kind of edit."""
    rows = [[kind, f"{e['accuracy']:.1f}", str(e["pairs"]), str(e["skipped"])] for kind, e in edits.items()]
    return text_table([title, "%", "pairs", "skipped"], rows)


def parts_of(tables: Mapping[str, Mapping[str, Any]]) -> list[Table | Bars]:
    """A plot and a table of accuracies, {run: {kind of edit: its figures}}."""
    kinds = sorted({kind for table in tables.values() for kind in table})
    intervals: dict[str, list[Interval | None]] = {}
    for run, table in tables.items():
        entries = [table.get(kind) for kind in kinds]
        intervals[run] = [e and (e["accuracy"], *wilson(e["accuracy"], e["pairs"])) for e in entries]
    labels = [kind.replace("_", " ") for kind in kinds]
    counts = [", ".join({str(t[kind]["pairs"]): None for t in tables.values() if kind in t}) for kind in kinds]
    rows = [
        Row(run, [Cell(f"{v[0]:.1f}", note=f"[{v[1]:.1f}, {v[2]:.1f}]") if v else Cell("–") for v in values], run)
        for run, values in intervals.items()
    ]
    figures = Table("", "run", labels, rows, header_notes=[f"{count} pairs" for count in counts])
    return [Bars("Accuracy by kind of edit", labels, intervals), figures]
