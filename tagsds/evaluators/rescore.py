"""The first K of each query ordered anew by what the encoder would write: its masked-word head judges the caption with the picture
before it, and that likelihood is added to the ranking score.

Rescoring a list by pseudo-likelihoods is Salazar et al.'s (ACL 2020, arXiv 1910.14659). Between pictures of one caption the
likelihood log p(T | I) is compared as it is. Between captions of one picture it is taken relative to the words alone,
log p(T | I) - log p(T): otherwise the shortest and most usual caption would win. An encoder that writes its negatives has kept the
head that this needs.

Shapes: I = ranked images, C = ranked captions, P = pairs in a list; a pair's number is image * C + caption.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tagsds.data.vocabulary import Vocabulary
from tagsds.errors import UserError
from tagsds.evaluators.console import recall_table
from tagsds.evaluators.likelihood import check_writes_words
from tagsds.evaluators.metrics import ranks, recalls_of_ranks
from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.query_bank import QueryBank
from tagsds.evaluators.recall import every, note_of, recall_tables
from tagsds.evaluators.section import Section
from tagsds.evaluators.shortlist import Shortlist, reranked, shortlist
from tagsds.scoring.likelihood import pseudo_likelihood

NAME = "rescore"
SEEN, ALONE = f"{NAME}/seen", f"{NAME}/alone"  # likelihoods of the pairs, float32 [P], and of the captions by the words alone, [C]
TITLES = {"rescored": "by likelihood too", "rescored_query_bank": "by likelihood too, without hubs"}
BLOCK = 256  # sentences whose pieces are hidden together


@dataclass(frozen=True)
class RescoreSettings:
    """first: how many of each query are ordered anew. weight: of a nat of likelihood beside a unit of the ranking score; both were
    chosen on dev (docs/results/tables.md)."""

    first: int = 16
    weight: float = 0.1


class Rescore(Evaluator):
    """`rescored` of the results file: the recalls, with `first`, `weight`, the pairs that were judged and the seconds it took;
    beside the evaluator `query-bank` also `rescored_query_bank`, the same from scores without hubs."""

    name = NAME
    Settings = RescoreSettings

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--rescore", type=int, nargs="?", const=RescoreSettings.first, metavar="K",
                            help="also recalls with the first K of each query (16) ordered anew by their likelihood")  # fmt: skip

    @classmethod
    def check_options(cls, options: argparse.Namespace) -> None:
        if options.rescore is not None and options.rescore < 1:
            raise UserError(f"--rescore is {options.rescore}; give a whole number of at least 1.")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return options.rescore is not None

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"first": options.rescore} if options.rescore is not None else {}

    def check(self, plan: Plan) -> None:
        check_writes_words(plan, "--rescore")

    @property
    def query_bank(self) -> QueryBank | None:
        return next((other for other in self.beside if isinstance(other, QueryBank)), None)

    def score(self, subject: Subject) -> None:
        super().score(subject)
        world = subject.world
        lists = self.lists(subject) if world.is_main else {}
        wanted = [one.pairs() for one in lists.values()]
        listed = world.broadcast(torch.cat(wanted).unique().to(subject.bank.device) if wanted else None)
        subject.kept[NAME] = lists, listed
        subject.once(SEEN, len(listed), partial(judge, subject, listed))
        captions = torch.arange(len(subject.captions), device=listed.device)
        subject.once(ALONE, len(captions), partial(judge, subject, captions, by_words=True))

    def lists(self, subject: Subject) -> dict[str, Shortlist]:
        """The first of each query, by the entry of the results file that they are for. First rank only."""
        matrices = self.matrices(subject)
        return {name: shortlist(matrix.float(), self.settings.first) for name, matrix in matrices.items()}

    def matrices(self, subject: Subject) -> dict[str, Tensor]:
        """The scores [I, C] from which each entry starts."""
        found = {"rescored": subject.matrix}
        return found | {"rescored_query_bank": self.query_bank.without_hubs(subject)} if self.query_bank else found

    def figures(self, subject: Subject) -> dict[str, Any]:
        lists, listed = subject.kept[NAME]
        seconds = subject.costs[SEEN].seconds + subject.costs[ALONE].seconds
        about = {**vars(self.settings), "pairs_judged": len(listed), "seconds": seconds}
        found = {}
        for name, matrix in self.matrices(subject).items():
            recalls = rescored(
                matrix.float(), lists[name], listed, subject.scores[SEEN], subject.scores[ALONE], self.settings.weight,
                subject.image_of_caption,
            )  # fmt: skip
            found[name] = recalls | about
        return found

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        rows = {f"first {results[key]['first']}, {title}": results[key] for key, title in TITLES.items() if key in results}
        return recall_table(rows) if rows else None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
        tables = []
        for key, title in TITLES.items():
            entries = [(*found, found[1][key], note_of(found[1])) for found in every(runs) if key in found[1]]
            tables += recall_tables(entries, f"Split “{{split}}”, the first of each query ordered anew {title}")
        return Section("recall", tables)


def judge(subject: Subject, numbers: Tensor, by_words: bool = False) -> Tensor | None:
    """Collective: pseudo-likelihoods by the subject's own masked-word head of pairs (int64 [P], their numbers), or by the words
    alone of captions (int64 [C]): float32 [P] or [C] on the first rank, None on the others."""
    bank, vocab = subject.bank, Vocabulary.of(subject.tokenizer)
    parts = [torch.empty(0, device=bank.device)]
    mine = subject.world.share(numbers.to(bank.device))
    blocks = mine.split(BLOCK) if len(mine) else ()  # `split` gives one empty block of nothing
    for block in tqdm(blocks, desc="rescore", unit=f"x{BLOCK} sentences", disable=not subject.shows_progress, leave=False):
        caption = subject.captions.to(bank.device)[block % len(subject.captions)]
        seen: tuple[Any, ...] = ()
        if not by_words:
            rows, image_of_pair = torch.unique(block // len(subject.captions), return_inverse=True)
            seen = (bank.image_table(rows), image_of_pair)
        parts.append(pseudo_likelihood(subject.model, bank.text_table(caption), vocab, *seen))  # type: ignore[arg-type]
    return subject.world.gather(torch.cat(parts), len(numbers))


def rescored(
    scores: Tensor, lists: Shortlist, listed: Tensor, seen: Tensor, alone: Tensor, weight: float, image_of_caption: Tensor
) -> dict[str, float | int]:
    """Recalls where the listed stand above all others, by score and likelihood; the others stay as they were.

    scores   float [I, C]; lists: the first of each row and column; listed int64 [P]: the numbers of their pairs
    seen     float32 [P], log p(T | I); alone float32 [C], log p(T)
    """
    captions = scores.shape[1]
    listed, seen, alone = (values.to(scores.device) for values in (listed, seen, alone))
    plain = scores.flatten()[listed].float()
    of_rows, _ = reranked(scores, lists, listed, plain + weight * (seen - alone[listed % captions]))
    text_ranks = ranks(of_rows, image_of_caption)[0]
    del of_rows  # as large as the scores
    _, of_columns = reranked(scores, lists, listed, plain + weight * seen)
    return recalls_of_ranks(text_ranks, ranks(of_columns, image_of_caption)[1]).as_dict()
