"""Edited captions by the encoder's own masked-word head with the picture before it: which of the two it would rather write.

An encoder that writes its negatives (TAGS, TAGS-DC) keeps this head beside the one that matches; the two judge a caption by
different means, and their sum is what the one encoder knows of it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tagsds.errors import UserError
from tagsds.evaluators.blind import Blind, balanced_accuracy, find_words_head, score_likelihood, sum_is_right
from tagsds.evaluators.edits import JudgeOfEdits, key_of
from tagsds.evaluators.further import Further
from tagsds.evaluators.metrics import pair_accuracy
from tagsds.evaluators.pairs_file import EditSet
from tagsds.evaluators.protocol import Plan, Subject
from tagsds.models.load import read_encoder_config

NAME = "likelihood"
INTRO = (
    "The likelihood is that of the encoder's own masked-word head (or another's, where one was named), piece by piece, the picture "
    "before it: which of the two it would rather write. With the likelihood: by the sum of it and the ranking score, each "
    "difference in its own root mean square. Balanced: the mean of the accuracy where the blind scorer is right and where it is "
    "wrong (with --blind)."
)
COLUMNS = {
    "model": "model", "likelihood": "likelihood", "both": "with the likelihood",
    "balanced": "likelihood, balanced", "both_balanced": "with the likelihood, balanced",
}  # fmt: skip


@dataclass(frozen=True)
class LikelihoodSettings:
    """run: an encoder whose masked-word head judges the captions; None: the evaluated one itself.
    weight: of the likelihood in `both`, beside the ranking score's 1 (that of the blind scorer, chosen on edits of dev)."""

    run: Path | None = None
    weight: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", Path(self.run) if self.run else None)


class Likelihood(JudgeOfEdits):
    """`likelihood` of the results file: {kind of edit: model, likelihood, both, pairs; balanced, both_balanced beside the evaluator
    `blind`}, per cent; beside the evaluator `edits`."""

    name = NAME
    Settings = LikelihoodSettings
    title, intro, columns = "Edited captions, by what the encoder would write", INTRO, COLUMNS

    def __init__(self, settings: LikelihoodSettings) -> None:
        super().__init__(settings)
        self.further: Further | None = None
        self.other: Subject | None = None

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--likelihood", type=Path, nargs="?", const=True, metavar="RUN",
                            help="judge the --pairs by the encoder's own masked-word head as well, or by RUN's")  # fmt: skip

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return options.likelihood is not None

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"run": options.likelihood} if isinstance(options.likelihood, Path) else {}  # without a value: True

    def check(self, plan: Plan) -> None:
        super().check(plan)
        if self.settings.run:
            self.further = find_words_head(self.settings.run, "--likelihood", plan)
        else:
            check_writes_words(plan, "--likelihood")

    def prepare(self, subject: Subject) -> None:
        self.other = self.further.subject(subject, "mlm") if self.further else None

    def score(self, subject: Subject) -> None:
        writer = self.other or subject
        for kind in self.kinds:
            writer.once(likelihood_of(kind), 2 * len(kind.pairs), partial(score_likelihood, writer, kind, True))

    def figures(self, subject: Subject) -> dict[str, Any]:
        """Not a headline: likelihoods of an ensemble's members are not averaged, as not all have this head."""
        blind = next((other.other for other in self.beside if isinstance(other, Blind)), None)
        writer, found = self.other or subject, {}
        for kind in self.kinds:
            guesses = blind.scores[key_of(kind)] if blind else None
            found[kind.kind] = compare(
                subject.scores[key_of(kind)], writer.scores[likelihood_of(kind)], self.settings.weight, guesses
            )
        return {NAME: found}

    def sources(self) -> dict[str, Any]:
        return {NAME: self.further.source()} if self.further else {}


def check_writes_words(plan: Plan, option: str) -> None:
    """UserError where the model has no trained masked-word head."""
    if plan.model.scored_by != "pairs":
        raise UserError(f"{option} needs a masked-word head and this is {plan.model.kind}; give an encoder.")
    if plan.folder is not None and "mlm" not in read_encoder_config(plan.folder).trained_heads:
        raise UserError(f"{plan.folder} has no trained masked-word head for {option}; give a run that was trained with mlm.")


def likelihood_of(kind: EditSet) -> str:
    """The key of its scores in the subject."""
    return f"{NAME}/{kind.kind}"


def compare(scores: Tensor, likelihood: Tensor, weight: float, blind: Tensor | None = None) -> dict[str, Any]:
    """Figures of a kind of edit from the ranking scores and the likelihoods, and the blind scorer's likelihoods where there is one,
    all [N, 2] (true, false caption)."""
    both = sum_is_right(scores, likelihood, weight)
    found: dict[str, Any] = {
        "model": pair_accuracy(scores[:, 0], scores[:, 1]),
        "likelihood": pair_accuracy(likelihood[:, 0], likelihood[:, 1]),
        "both": 100.0 * both.float().mean().item(),
        "pairs": len(scores),
    }
    if blind is not None:
        found["balanced"] = balanced_accuracy(likelihood[:, 0] > likelihood[:, 1], blind)
        found["both_balanced"] = balanced_accuracy(both, blind)
    return found
