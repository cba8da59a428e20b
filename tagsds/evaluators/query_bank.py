"""Hubs taken down: image retrieval after each image has paid for what it scores with captions that are not its own.

A few images score high with every caption and stand first for queries that are not theirs (hubness). Their bias is estimated on a
bank of training captions and taken off in part: the inverted softmax (Smith et al., arXiv 1702.03859) over a query bank (Bogolin
et al., arXiv 2112.12777). Text retrieval is as it was: there an image is the query. No published figure of these models is made
so, and it is a row of its own.

Shapes: I = ranked images, C = ranked captions, Q = captions of the bank.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.evaluators.console import recall_table
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.recall import every, note_of, recall_tables
from tagsds.evaluators.section import Section
from tagsds.formats.manifest import Manifest
from tagsds.malloc import give_back_freed_memory
from tagsds.scoring.protocol import PairScorer

SCORES = "query-bank"  # [I, Q]
BLOCK = 1 << 15  # pairs scored together


@dataclass(frozen=True)
class QueryBankSettings:
    """images: first ones of the bank's split, whose captions are the bank. weight: share of a bias that is taken off. temperature:
    of the soft maximum over the bank, in standard deviations of its scores. Both were chosen on dev (docs/results/limits.md)."""

    images: int = 200
    split: str = "train"
    weight: float = 0.5
    temperature: float = 0.5


class QueryBank(Evaluator):
    """`query_bank` of the results file."""

    name = "query-bank"
    Settings = QueryBankSettings

    def __init__(self, settings: QueryBankSettings) -> None:
        super().__init__(settings)
        self.manifest: Manifest
        self.bank: Bank

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--query-bank", type=int, nargs="?", const=QueryBankSettings.images, metavar="N",
                            help="also recalls without hubs, by the captions of the first training images (200)")  # fmt: skip

    @classmethod
    def check_options(cls, options: argparse.Namespace) -> None:
        if options.query_bank is not None and options.query_bank < 2:
            raise UserError(f"--query-bank is {options.query_bank}; give a whole number of at least 2.")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return options.query_bank is not None

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"images": options.query_bank} if options.query_bank is not None else {}

    def check(self, plan: Plan) -> None:
        if self.settings.split == plan.split:
            own = f"'{plan.split}', whose images would be their own queries"
            raise UserError(f"the query bank must be of another split than {own}.")
        plan.manifest.shards(self.settings.split)
        self.manifest = plan.manifest

    def prepare(self, subject: Subject) -> None:
        bank, _ = load_bank(self.manifest.folder, self.settings.split, self.settings.images, checksum=False, classes=False)
        self.bank = bank.to(subject.bank.device)

    def score(self, subject: Subject) -> None:
        super().score(subject)
        images = torch.arange(subject.images, device=subject.bank.device)
        queries = torch.arange(self.bank.num_captions, device=subject.bank.device)

        def work() -> Tensor | None:
            part = crossed(subject.pair_scorer, subject.bank, subject.world.share(images), self.bank, queries)
            return subject.world.gather(part, len(images))

        subject.once(SCORES, len(images) * len(queries), work)

    def without_hubs(self, subject: Subject) -> Tensor:
        """The score matrix, each image's share of its bias taken off: float [I, C]; first rank only, after `score`."""
        scores, chosen = subject.scores[SCORES], self.settings
        bias = chosen.weight * soft_maximum(scores, chosen.temperature * scores.std().item())
        return subject.matrix - bias.to(subject.matrix.device)[:, None]

    def headline(self, subject: Subject) -> dict[str, Any]:
        found = recalls(self.without_hubs(subject), subject.image_of_caption).as_dict()
        return {"query_bank": found | {"bank": self.bank.num_captions}}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        found = results.get("query_bank")
        return recall_table({f"hubs taken down by {found['bank']} captions": found}) if found else None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        entries = [(*found, found[1]["query_bank"], note_of(found[1])) for found in every(runs) if "query_bank" in found[1]]
        return Section("recall", recall_tables(entries, "Split “{split}”, hubs taken down by a query bank"))


def soft_maximum(scores: Tensor, temperature: float) -> Tensor:
    """t log of the mean over a row of e^(s / t), float [N]: the mean of the row for a large t, its maximum for a small one."""
    if temperature <= 0:
        return scores.mean(dim=1)
    return temperature * (torch.logsumexp(scores / temperature, dim=1) - math.log(scores.shape[1]))


def crossed(scorer: PairScorer, of_images: Bank, images: Tensor, of_captions: Bank, captions: Tensor) -> Tensor:
    """Scores of images (int64 [N]) of one bank with captions (int64 [M > 0]) of another: float32 [N, M]."""
    parts = [torch.empty(0, len(captions), device=of_images.device)]
    table, every_caption = of_captions.text_table(captions), torch.arange(len(captions), device=captions.device)
    for block in images.split(max(BLOCK // len(captions), 1)) if len(images) else ():
        place = torch.arange(len(block), device=block.device).repeat_interleave(len(captions))
        pairs = Pairs(table, of_images.image_table(block), every_caption.repeat(len(block)), place)
        parts.append(scorer(pairs).view(len(block), -1))
        give_back_freed_memory()
    return torch.cat(parts)
