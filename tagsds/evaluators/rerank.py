"""What a matcher shortlists and the pair encoder reranks, against exact scoring: recalls, pairs and seconds (see `shortlist`)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tagsds.errors import UserError
from tagsds.evaluators.console import DEFAULT_AT, duration, recall_columns, recall_table, text_table
from tagsds.evaluators.further import Further
from tagsds.evaluators.protocol import MATRIX, Evaluator, Plan, Subject
from tagsds.evaluators.recall import cells_of, every, recall_groups
from tagsds.evaluators.section import Cell, Row, Section, Table
from tagsds.evaluators.shortlist import rerank_results, score_shortlists
from tagsds.scoring.registry import SCORERS


@dataclass(frozen=True)
class RerankSettings:
    """shortlist: the checkpoint of a matcher, which ranks everything. ks: the first K of a query are scored again, for each K."""

    shortlist: Path
    ks: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shortlist", Path(self.shortlist))
        object.__setattr__(self, "ks", tuple(self.ks))


class Rerank(Evaluator):
    """`shortlist` and `rerank` of the results file, and `exact`, the cost of scoring all pairs, where that was done too."""

    name = "rerank"
    Settings = RerankSettings
    needs_matrix = False

    def __init__(self, settings: RerankSettings) -> None:
        super().__init__(settings)
        self.further: Further | None = None
        self.matcher: Subject | None = None

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--shortlist", type=Path, metavar="RUN", help="a matcher that chooses what is scored (--rerank)")
        parser.add_argument("--rerank", type=int, nargs="+", default=[], metavar="K", help="score the matcher's first K again")
        parser.add_argument("--no-exact", action="store_true", help="with --shortlist: omit the exact scoring")

    @classmethod
    def check_options(cls, options: argparse.Namespace) -> None:
        for k in options.rerank:
            if k < 1:
                raise UserError(f"--rerank is {k}; give a whole number of at least 1.")
        if options.rerank and not options.shortlist:
            raise UserError("--rerank needs a matcher to choose the pairs; give its run with --shortlist.")
        if options.shortlist and not options.rerank:
            raise UserError("--shortlist needs to know how many to score again; give --rerank 16 32 64 128, for example.")
        if options.no_exact and not options.shortlist:
            raise UserError("--no-exact leaves nothing to rank by; give --shortlist and --rerank too, or omit it.")
        if options.no_retrieval and options.shortlist:
            raise UserError("--shortlist ranks images and captions; omit --no-retrieval.")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return options.shortlist is not None

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"shortlist": options.shortlist, "ks": options.rerank} if options.shortlist else {}

    def check(self, plan: Plan) -> None:
        further = self.further = Further.find(self.settings.shortlist)
        if not SCORERS[further.model.scored_by].encodes_apart:
            raise UserError(
                f"--shortlist {further.path} is {further.model.kind}; give the run of a matcher (VSRN, SCAN or BFAN)."
            )
        if SCORERS[plan.model.scored_by].encodes_apart:
            whose = f"--checkpoint {plan.folder}" if plan.folder else "the model"
            raise UserError(f"{whose} is {plan.model.kind}; --rerank needs a run of the pair encoder there.")
        further.check(plan)

    def prepare(self, subject: Subject) -> None:
        assert self.further is not None  # check comes first
        self.matcher = self.further.subject(subject)
        self.matcher.check_captions()

    def score(self, subject: Subject) -> None:
        assert self.matcher is not None
        images = torch.arange(subject.images, device=subject.bank.device)
        subject.kept[self.name] = score_shortlists(
            self.matcher.pair_scorer, subject.pair_scorer, subject.bank, images, subject.captions, self.settings.ks,
            subject.world, subject.progress,
        )  # fmt: skip

    def figures(self, subject: Subject) -> dict[str, Any]:
        assert self.further is not None
        found = rerank_results(subject.kept[self.name], subject.image_of_caption)
        found["shortlist"] = {"checkpoint": str(self.further.folder.resolve()), **found["shortlist"]}
        if exact := subject.costs.get(MATRIX):
            found["exact"] = {"pairs_scored": exact.pairs, "seconds": exact.seconds}
        return found

    def sources(self) -> dict[str, Any]:
        return {"shortlist": self.further.source()} if self.further else {}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        """Recalls of the matcher alone, of each K and of exact scoring; then what each of them costs."""
        if "rerank" not in results:
            return None
        sets = {"matcher alone": results["shortlist"]["recalls"]}
        costs = []
        for row in results["rerank"]:
            sets[f"its first {row['k']}, reranked"] = row["recalls"]
            seconds, inside = row["seconds"], row["recall_of_shortlist"]
            shares = [f"{inside['text']:.1f}", f"{inside['image']:.1f}"]
            cells = [str(row["pairs_scored"]), f"{seconds['matcher']:.1f}", f"{seconds['encoder']:.1f}", *shares]
            costs.append([f"its first {row['k']}, reranked", *cells])
        if "recalls" in results:
            sets["exact"] = results["recalls"]
            costs.append(["exact", str(results["exact"]["pairs_scored"]), "-", f"{results['exact']['seconds']:.1f}", "-", "-"])
        header = ["cost", "pairs scored", "matcher, s", "encoder, s", "true caption in list, %", "true image in list, %"]
        return f"{recall_table(sets)}\n\n{text_table(header, costs)}"

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        return Section("recall", [table_of(run, result) for run, result in every(runs) if "rerank" in result])


def table_of(run: str, result: Mapping[str, Any]) -> Table:
    """The matcher, every K, exact scoring; and their cost."""
    keys, header = recall_columns(DEFAULT_AT)
    keys, header = keys[:7], [*header[:7], "text", "image", "pairs", "time"]

    def row(label: str, values: Mapping[str, float], *more: str) -> Row:
        return Row(label, [*cells_of(values, keys), *map(Cell, more)])

    rows = [row("the matcher alone", result["shortlist"]["recalls"], "–", "–", "–", "–")]
    for entry in result["rerank"]:
        inside, seconds = entry["recall_of_shortlist"], entry["seconds"]["matcher"] + entry["seconds"]["encoder"]
        shares = f"{inside['text']:.1f}", f"{inside['image']:.1f}"
        label = f"its first {entry['k']}, reranked"
        rows.append(row(label, entry["recalls"], *shares, str(entry["pairs_scored"]), duration(seconds)))
    if "recalls" in result:
        exact = result["exact"]
        rows.append(row("every pair", result["recalls"], "–", "–", str(exact["pairs_scored"]), duration(exact["seconds"])))
    matcher = f" ({result['shortlist']['checkpoint']})" if "checkpoint" in result["shortlist"] else ""
    before = (
        f"A matcher{matcher} ranks everything; the encoder scores again only what the matcher puts among the first K of a query. "
        "A true item that the matcher leaves out keeps a rank behind those K: “in the list” is the percentage of queries with a "
        "true item among them. The time is that of matcher and encoder together."
    )
    title = f"{run}, reranking: split “{result['split']}”, {result['images']} images, {result['captions']} captions"
    groups = [*recall_groups(DEFAULT_AT)[:3], ("in the list, %", 2), ("cost", 2)]
    return Table(title, "scored", header, rows, groups, before=before, run=run)
