"""Hubs taken down: recalls after each image has paid for what it scores with captions that are not its own, and each caption for
what it scores with images that are not its own.

A few images score high with every caption and stand first for queries that are not theirs (hubness), and so do captions for
images. Their bias is estimated on a bank of training images with their captions and taken off in part: the inverted softmax (Smith
et al., arXiv 1702.03859) over a query bank (Bogolin et al., arXiv 2112.12777). What a query itself has of it moves none of its
ranks, so that one matrix serves both directions. No published figure of these models is made so, and it is a row of its own.

Shapes: I = ranked images, C = ranked captions; of the bank B images and Q captions.
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

OF_IMAGES, OF_CAPTIONS = "query-bank/images", "query-bank/captions"  # scores [I, Q] and [B, C]
BLOCK = 1 << 15  # pairs scored together


@dataclass(frozen=True)
class QueryBankSettings:
    """images: first ones of the bank's split; they and their captions are the bank. weight: share of a bias that is taken off.
    temperature: of the soft maximum over the bank, in standard deviations of its scores. Both were chosen on dev
    (docs/results/limits.md)."""

    images: int = 200
    split: str = "train"
    weight: float = 0.5
    temperature: float = 1.0


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
                            help="also recalls without hubs, by the first training images (200) and their captions")  # fmt: skip

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
        world, device, scorer = subject.world, subject.bank.device, subject.pair_scorer
        images, queries = (torch.arange(n, device=device) for n in (subject.images, self.bank.num_captions))
        of_bank = torch.arange(self.bank.num_images, device=device)

        def image_scores() -> Tensor | None:
            return world.gather(crossed(scorer, subject.bank, world.share(images), self.bank, queries), len(images))

        def caption_scores() -> Tensor | None:
            return world.gather(crossed(scorer, self.bank, world.share(of_bank), subject.bank, subject.captions), len(of_bank))

        subject.once(OF_IMAGES, len(images) * len(queries), image_scores)
        subject.once(OF_CAPTIONS, len(of_bank) * len(subject.captions), caption_scores)

    def without_hubs(self, subject: Subject) -> Tensor:
        """The score matrix, of each image and each caption a share of its bias taken off: float [I, C]; first rank only, after
        `score`."""
        of_images, of_captions = (
            self.bias(scores).to(subject.matrix.device) for scores in (subject.scores[OF_IMAGES], subject.scores[OF_CAPTIONS].T)
        )
        return (subject.matrix - of_images[:, None]).sub_(of_captions)

    def bias(self, scores: Tensor) -> Tensor:
        """What is taken off, float [N], by scores with the bank, [N, M]."""
        return self.settings.weight * soft_maximum(scores, self.settings.temperature * scores.std().item())

    def headline(self, subject: Subject) -> dict[str, Any]:
        found = recalls(self.without_hubs(subject), subject.image_of_caption).as_dict()
        return {"query_bank": found | {"bank": self.bank.num_captions, "bank_images": self.bank.num_images}}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        found = results.get("query_bank")
        if not found:
            return None
        images = f" and {found['bank_images']} images" if "bank_images" in found else ""  # before 0.1.0: image retrieval alone
        return recall_table({f"hubs taken down by {found['bank']} captions{images}": found})

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
