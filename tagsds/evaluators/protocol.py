"""What an evaluator is, and what it works on.

An evaluator is one file with a subclass of `Evaluator`, chosen by name in a recipe or on the command line; the guide is
docs/extend/evaluator.md. Training's validation and `tagsds-evaluate` call it in the same order:

    check(plan)        before anything long is read: sizes and files
    prepare(subject)   once, with the corpus in memory: ids, further models
    score(subject)     on all ranks: the only place for collectives
    figures(subject)   on the first rank alone: pure functions of the scores
    table(results), section(runs)   text for the console, part of the HTML report: from results files alone

Shapes: I images ranked, C captions ranked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.evaluators.section import Section
from tagsds.formats.manifest import Manifest
from tagsds.models.load import check_captions, positions_of_model
from tagsds.ranks import World, current_world
from tagsds.scoring.protocol import PairScorer, RetrievalModel
from tagsds.scoring.registry import scorer_of
from tagsds.scoring.scorer import clock, score_matrix
from tagsds.scoring.table import ScoreFiles

MATRIX = "matrix"  # the key of the score matrix in `Subject.scores`


@dataclass(frozen=True)
class Plan:
    """What will be evaluated, as far as it is known before shards and weights are read.

    manifest, split   the corpus
    model             the class of the model
    first             only the first N images of the split are ranked; None: all
    folder            the Hugging Face folder of the checkpoint; None for a model in training
    """

    manifest: Manifest
    split: str
    model: type[RetrievalModel]
    first: int | None = None
    folder: Path | None = None

    @property
    def images(self) -> int:
        """How many are ranked."""
        there = self.manifest.splits[self.split]["images"]
        return there if self.first is None else min(self.first, there)


@dataclass
class Cost:
    """Pairs that were scored, and the seconds this took."""

    pairs: int
    seconds: float


@dataclass
class Subject:
    """A model on a corpus, and what has been scored of it.

    model                on the device of the bank
    bank                 all images that any evaluator needs; the first `images` of them are ranked
    captions             int64 [C], numbers in the bank of the captions that are ranked
    captions_per_image   as asked for (0: all)
    tokenizer            the corpus', for evaluators with sentences of their own
    world                the ranks that score together
    dtype, max_tokens    of the scorer; dtype None is exact
    scorer               the model's own by default. Training under ZeRO-3 gives one that keeps its ranks in step
    scores               on the first rank, by name: what was scored, float [N, ...]. An ensemble averages these, entry by entry
    kept                 on the first rank, by evaluator: anything else between `score` and `figures`
    costs                by name, as `scores`, on every rank
    files                where the score matrix lies, mapped, and what another run goes on with; None: in memory
    """

    model: RetrievalModel
    bank: Bank
    images: int
    captions: Tensor
    captions_per_image: int = 5
    tokenizer: Any = None
    world: World = field(default_factory=World)
    dtype: torch.dtype | None = None
    max_tokens: int | None = None
    progress: bool = False
    scorer: PairScorer | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    files: ScoreFiles | None = None

    @staticmethod
    def of(
        model: RetrievalModel, bank: Bank, first: int | None = None, captions_per_image: int = 5, world: World | None = None,
        **others: Any,
    ) -> Subject:  # fmt: skip
        """The first N images of a bank (None: all), each with its first captions (0: all); `others`: further fields."""
        count = bank.num_images if first is None else min(first, bank.num_images)
        captions = first_captions(bank, count, captions_per_image)
        return Subject(model, bank, count, captions, captions_per_image, world=world or current_world(bank.device), **others)

    @property
    def pair_scorer(self) -> PairScorer:
        if self.scorer is None:
            self.scorer = scorer_of(self.model, self.max_tokens, self.dtype)
        return self.scorer

    @property
    def image_of_caption(self) -> Tensor:
        """int64 [C], of the ranked captions."""
        return self.bank.image_of_caption[self.captions]

    @property
    def matrix(self) -> Tensor:
        """Scores of all ranked images with all ranked captions, float [I, C]; first rank only, after `score_matrix`."""
        return self.scores[MATRIX]

    @property
    def shows_progress(self) -> bool:
        return self.progress and self.world.is_main

    def once(self, name: str, pairs: int, work: Callable[[], Tensor | None]) -> None:
        """Collective: keep what `work` gives on the first rank as `scores[name]`, with its cost; nothing if it was done already."""
        if name in self.costs:
            return
        started = clock(self.bank.device)
        found = work()
        self.costs[name] = Cost(pairs, clock(self.bank.device) - started)
        if self.world.is_main and found is not None:
            self.scores[name] = found

    def score_matrix(self) -> None:
        """Collective: score every ranked image with every ranked caption, once however many evaluators ask."""

        if self.files is not None and MATRIX not in self.costs:
            started = clock(self.bank.device)
            table, scored = self.files.fill(
                lambda rows: score_matrix(self.pair_scorer, self.bank, rows.to(self.bank.device), self.captions, progress=False),
                self.images, len(self.captions), self.pair_scorer.encodes_apart, self.shows_progress,
            )  # fmt: skip
            self.costs[MATRIX] = Cost(scored * len(self.captions), clock(self.bank.device) - started)
            if table is not None:
                self.scores[MATRIX] = table
            return

        def work() -> Tensor | None:
            rows = self.world.share(torch.arange(self.images, device=self.bank.device))
            part = score_matrix(self.pair_scorer, self.bank, rows, self.captions, progress=self.shows_progress)
            return self.world.gather(part, self.images)

        self.once(MATRIX, self.images * len(self.captions), work)

    def check_captions(self) -> None:
        """UserError for a ranked caption that is longer than the model's positions."""
        check_captions(positions_of_model(self.model.config), self.bank, self.captions)

    def forget(self) -> None:
        """Let go of all scores, so that changed weights are scored anew."""
        self.scores.clear()
        self.kept.clear()
        self.costs.clear()


@dataclass(frozen=True)
class NoSettings:
    """Of an evaluator that has nothing to set."""


class Evaluator:
    """Base of all evaluators: the defaults of one that is a function of the score matrix. Such a one defines `headline`, and
    `table` and `section` to show it.

    name           in recipes, on the command line, in the registry
    Settings       a dataclass; its fields are the keys under the evaluator's name in a recipe
    ranks          ranks the images and captions of the subject, so that the results file says how many there are
    needs_matrix   needs the score of every pair of them
    any_image      may need images of the split that are not ranked
    beside         the other evaluators of the same run, set by `make_evaluators`
    """

    name: ClassVar[str]
    Settings: ClassVar[type] = NoSettings
    ranks: ClassVar[bool] = True
    needs_matrix: ClassVar[bool] = True
    any_image: ClassVar[bool] = False

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.beside: list[Evaluator] = []

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Its options of tagsds-evaluate."""

    @classmethod
    def check_options(cls, options: argparse.Namespace) -> None:
        """UserError for values out of range, and for options that do not go together."""

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        """Whether the options ask for it, though --evaluators does not name it."""
        return False

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        """Its settings from the options of tagsds-evaluate."""
        return {}

    def check(self, plan: Plan) -> None:
        """UserError where it cannot be done on this corpus, or a file is missing."""

    def prepare(self, subject: Subject) -> None:
        """Once, before the first `score`; UserError for what shows only with the corpus in memory."""

    def score(self, subject: Subject) -> None:
        """Collective, the same on all ranks. What is found belongs into the subject, not into the evaluator."""
        if self.needs_matrix:
            subject.score_matrix()

    def headline(self, subject: Subject) -> dict[str, Any]:
        """Entries of the results file that follow from `subject.scores` alone, and so hold for an ensemble's average too."""
        return {}

    def figures(self, subject: Subject) -> dict[str, Any]:
        """All its entries of the results file; first rank only."""
        return self.headline(subject)

    def sources(self) -> dict[str, Any]:
        """Entries of the results file's "provenance": files and models that it used."""
        return {}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        """What the console shows of a results file; None where it has nothing of this evaluator."""
        return None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section | None:
        """Its part of the HTML report about several runs, {run: its results files}; None where none has anything to show."""
        return None


def first_captions(bank: Bank, images: int, per_image: int) -> Tensor:
    """Numbers of the first `per_image` captions (0: all) of the first `images` images, image by image: int64 [C].

    COCO has images with six and seven captions; the published figures use five each.
    """
    rows = [bank.captions_of_image[image] for image in range(images)]
    return torch.cat([row[:per_image] if per_image else row for row in rows])
