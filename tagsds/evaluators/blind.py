"""What the words alone give away: edited captions judged by a language model that sees no picture. Only what exceeds it has been
read from the picture (Hsieh et al., arXiv 2306.14610, on benchmarks that text models solve)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.data.vocabulary import Vocabulary
from tagsds.errors import UserError
from tagsds.evaluators.edits import JudgeOfEdits, key_of, tokenize_texts
from tagsds.evaluators.further import Further
from tagsds.evaluators.metrics import pair_accuracy
from tagsds.evaluators.pairs_file import EditSet
from tagsds.evaluators.protocol import Plan, Subject
from tagsds.models.uniter import UniterModel
from tagsds.scoring.likelihood import pseudo_likelihood

INTRO = (
    "The blind scorer sees the caption alone: its masked-word likelihood, piece by piece. Above blind: points by which the model "
    "exceeds it. Balanced: the mean of the model's accuracy where the blind scorer is right and where it is wrong, so that what is "
    "guessed from the words alone stands at 50 %. Both: by the sum of the two, each difference in its own root mean square."
)
COLUMNS = {"model": "model", "blind": "blind", "above": "above blind", "balanced": "balanced", "both": "both"}


@dataclass(frozen=True)
class BlindSettings:
    """run: an encoder whose masked-word head judges the captions, such as the pre-training that the models began from.
    weight: of the blind scorer in `both`, beside the model's 1; chosen on edits of dev (docs/results/tables.md)."""

    run: Path
    weight: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", Path(self.run))


class Blind(JudgeOfEdits):
    """`blind` of the results file: {kind of edit: model, blind, above, balanced, both, pairs}, per cent; beside the evaluator
    `edits`."""

    name = "blind"
    Settings = BlindSettings
    title, intro, columns, signed = "Edited captions, by the words alone", INTRO, COLUMNS, ("above",)

    def __init__(self, settings: BlindSettings) -> None:
        super().__init__(settings)
        self.further: Further
        self.other: Subject

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--blind", type=Path, metavar="RUN", help="an encoder that judges the --pairs by the words alone")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return bool(options.blind)

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"run": options.blind} if options.blind else {}

    def check(self, plan: Plan) -> None:
        super().check(plan)
        self.further = find_words_head(self.settings.run, "--blind", plan)

    def prepare(self, subject: Subject) -> None:
        self.other = self.further.subject(subject, "mlm")

    def score(self, subject: Subject) -> None:
        for kind in self.kinds:
            self.other.once(key_of(kind), 2 * len(kind.pairs), partial(score_likelihood, self.other, kind, False))

    def figures(self, subject: Subject) -> dict[str, Any]:
        found = {}
        for kind in self.kinds:
            found[kind.kind] = compare(subject.scores[key_of(kind)], self.other.scores[key_of(kind)], self.settings.weight)
        return {"blind": found}

    def sources(self) -> dict[str, Any]:
        return {"blind": self.further.source()}


def find_words_head(run: Path, option: str, plan: Plan) -> Further:
    """The encoder of a run whose masked-word head will judge captions. UserError where there is none, or it has not that head."""
    further = Further.find(run)
    if further.model is not UniterModel:
        raise UserError(f"{option} {run} is {further.model.kind}, which has no masked-word head; give an encoder.")
    if "mlm" not in further.config.trained_heads:
        raise UserError(f"{option} {run} has no trained masked-word head; give a run that was trained with mlm.")
    further.check(plan)
    return further


def score_likelihood(subject: Subject, kind: EditSet, with_image: bool) -> Tensor | None:
    """Collective: [N, 2], log-likelihoods of a kind's true and false captions by the subject's masked-word head, with their image
    behind them or by the words alone; None on all ranks but the first."""
    every = [text for pair in kind.pairs for text in (pair.caption, pair.negative)]
    whole = tokenize_texts(subject.tokenizer, every, subject.model.config.max_position_embeddings)
    share = subject.world.share(torch.arange(len(kind.pairs)))
    part = torch.empty(len(share), 2, device=subject.bank.device)
    if len(share):
        mine = whole.select(torch.stack([2 * share, 2 * share + 1], dim=1).flatten()).to(subject.bank.device)
        seen: tuple[Any, ...] = ()
        if with_image:
            images = torch.tensor([kind.pairs[n].image for n in share.tolist()], device=subject.bank.device)
            rows, image_of_pair = torch.unique(images, return_inverse=True)
            seen = (subject.bank.image_table(rows), image_of_pair.repeat_interleave(2))
        part = pseudo_likelihood(subject.model, mine, Vocabulary.of(subject.tokenizer), *seen).view(-1, 2)  # type: ignore[arg-type]
    return subject.world.gather(part, len(kind.pairs))


def compare(scores: Tensor, blind: Tensor, weight: float = BlindSettings.weight) -> dict[str, Any]:
    """Figures of a kind of edit from the scores of the model and of the blind scorer, both [N, 2] (true, false caption)."""
    model, alone = pair_accuracy(scores[:, 0], scores[:, 1]), pair_accuracy(blind[:, 0], blind[:, 1])
    balanced = balanced_accuracy(scores[:, 0] > scores[:, 1], blind)
    both = 100.0 * sum_is_right(scores, blind, weight).float().mean().item()
    return {"model": model, "blind": alone, "above": model - alone, "balanced": balanced, "both": both, "pairs": len(scores)}


def balanced_accuracy(right: Tensor, blind: Tensor) -> float | None:
    """Mean, %, of the accuracy where the blind scorer is right and where it is wrong; None where it is always the same.
    right bool [N], blind [N, 2]."""
    guessed = blind[:, 0] > blind[:, 1]
    halves = [100.0 * right[some].float().mean().item() for some in (guessed, ~guessed) if some.any()]
    return sum(halves) / 2 if len(halves) == 2 else None


def sum_is_right(scores: Tensor, others: Tensor, weight: float) -> Tensor:
    """Whether the true caption stands above the false one by the sum of two scorers, each [N, 2]: bool [N]."""
    return scaled_difference(scores) + weight * scaled_difference(others) > 0


def scaled_difference(scores: Tensor) -> Tensor:
    """By how much the true caption of each pair exceeds the false one, in root mean squares of these differences: [N, 2] -> [N]. So
    scorers of any unit can be added, and a difference keeps its sign."""
    difference = scores[:, 0] - scores[:, 1]
    return difference / difference.square().mean().sqrt().clamp(min=1e-30)
