"""Benchmarks with more than one true item a query, on the 5,000 images and 25,000 captions of COCO's Karpathy test split.

ECCV Caption (Chun et al., ECCV 2022, arXiv 2204.03359) and CxC (Parekh et al., EACL 2021, arXiv 2004.15020) add the true pairs that
COCO's own annotation lacks. Both name images and captions by COCO's image ids and annotation ids; the relevance data are those of
the package eccv_caption. Its functions want ranked lists, in which equal scores have an arbitrary order; here the place of every
true item is counted, and equal scores count against us.

Shapes: I images, C captions ranked; Q queries; P most true items of a query.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tagsds.errors import UserError
from tagsds.evaluators.metrics import ROWS, check_scores
from tagsds.evaluators.pairs_file import coco_number
from tagsds.evaluators.protocol import Evaluator, Plan, Subject


@dataclass(frozen=True)
class Benchmark:
    """`owner`: caption id -> image id of COCO's test split; `captions_of_image`, `images_of_caption`: query id -> ids of all its
    true items."""

    owner: Mapping[int, int]
    captions_of_image: Mapping[int, Sequence[int]]
    images_of_caption: Mapping[int, Sequence[int]]


def load_benchmark(evaluator: str) -> Benchmark:
    """The relevance data of `eccv` or `cxc` in the package eccv_caption. UserError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that ujson, which it can do without, is absent
            from eccv_caption import Metrics
    except ImportError as error:
        raise UserError(
            f"evaluator '{evaluator}' needs the package eccv_caption, which holds its data; pip install 'tagsds[eccv]'."
        ) from error
    data = Metrics()
    owner = {caption: images[0] for caption, images in data.coco_gts["t2i"].items()}
    tables = getattr(data, f"{evaluator}_gts")
    return Benchmark(owner, tables["i2t"], tables["t2i"])


@dataclass
class Queries:
    """queries int64 [Q]; true int64 [Q, P], the items' numbers, -1 behind a query's last; wanted int64 [Q], how many true items the
    benchmark counts for each (more than are listed where the benchmark names items outside the split)."""

    queries: Tensor
    true: Tensor
    wanted: Tensor


@dataclass
class Match:
    """Which of a subject's images and captions are the benchmark's. `images` int64 and `captions` int64 are numbers of rows and
    columns of the score matrix; the queries and true items of `text` and `image` are numbers within those two."""

    images: Tensor
    captions: Tensor
    text: Queries
    image: Queries
    counts: dict[str, Any]


def match(benchmark: Benchmark, subject: Subject, evaluator: str) -> Match:
    """Find the benchmark's images and captions among those that are ranked. UserError where the ids are not COCO's."""
    bank = subject.bank
    image_ids = [coco_number(key) for key in bank.keys[: subject.images]]
    owned = set(benchmark.owner.values())
    images = {number: row for row, number in enumerate(image_ids) if number is not None and number in owned}
    if not images:
        raise UserError(
            f"evaluator '{evaluator}' knows images by their COCO ids, and none of COCO's test images is among the keys of the "
            f"split (its first key is '{bank.keys[0]}'); choose the Karpathy test split, or omit the evaluator."
        )
    captions: dict[int, int] = {}
    for column, (caption, image) in enumerate(zip(subject.captions.tolist(), subject.image_of_caption.tolist(), strict=True)):
        given = bank.caption_ids[caption] if caption < len(bank.caption_ids) else ""
        number = int(given) if given.isdecimal() else -1
        if image_ids[image] not in images or number not in benchmark.owner:
            continue
        if benchmark.owner[number] != image_ids[image]:
            raise UserError(
                f"captions.json in the shards gives id {number} to a caption of image {bank.keys[image]}, in COCO it belongs to "
                f"image {benchmark.owner[number]}: these are not annotation ids; pack the corpus with COCO's own caption files."
            )
        captions[number] = column
    if not captions:
        raise UserError(
            f"evaluator '{evaluator}' knows captions by their COCO annotation ids, and captions.json in the shards has none of "
            f"them (its first id is '{(bank.caption_ids or [''])[0]}'); pack the corpus with COCO's own caption files."
        )
    complete = len(images) == len(owned) and len(captions) == len(benchmark.owner)
    rows, columns = ({number: at for at, number in enumerate(found)} for found in (images, captions))
    text = queries_of(benchmark.captions_of_image, rows, columns, complete)
    image_queries = queries_of(benchmark.images_of_caption, columns, rows, complete)
    if not len(text.queries) or not len(image_queries.queries):
        raise UserError(
            f"evaluator '{evaluator}' finds {len(images)} images and {len(captions)} captions of its benchmark in the split, and "
            "in one direction no query with a true item; choose the Karpathy test split, or omit the evaluator."
        )
    counts = {
        "partial": not complete,
        "images": len(images), "images_of_benchmark": len(owned),
        "captions": len(captions), "captions_of_benchmark": len(benchmark.owner),
        "text_queries": len(text.queries), "text_queries_of_benchmark": len(benchmark.captions_of_image),
        "image_queries": len(image_queries.queries), "image_queries_of_benchmark": len(benchmark.images_of_caption),
    }  # fmt: skip
    return Match(torch.tensor(list(images.values())), torch.tensor(list(captions.values())), text, image_queries, counts)


def queries_of(table: Mapping[int, Sequence[int]], queries: Mapping[int, int], items: Mapping[int, int], complete: bool) -> Queries:
    """Of a corpus that lacks some of the benchmark, only true items that are there count, and only queries with such a one."""
    rows, true, wanted = [], [], []
    for query, named in table.items():
        there = [items[item] for item in dict.fromkeys(named) if item in items]
        if query in queries and there:
            rows.append(queries[query])
            true.append(torch.tensor(there))
            wanted.append(len(set(named)) if complete else len(there))
    padded = pad_sequence(true, batch_first=True, padding_value=-1) if true else torch.empty(0, 1, dtype=torch.int64)
    return Queries(torch.tensor(rows, dtype=torch.int64), padded, torch.tensor(wanted, dtype=torch.int64))


def places(scores: Tensor, queries: Queries, most: int | None = None) -> Tensor:
    """Places of the true items in their query's ranking, counted from 0, best first: int64 [Q, P] on the CPU.

    scores   [queries, items]
    most     only the best so many (P = most)

    The place of the j-th best true item is j plus the number of other items that score at least as high as it: of equal scores the
    true one comes last. Behind a query's last true item stands a place behind all items.
    """
    # by counts, so that few comparisons are in vain; where one comparison does, in the order in which the scores lie in memory
    order = ((queries.true >= 0).sum(1) if most is None else queries.queries).argsort(stable=True)
    out = torch.full_like(queries.true, scores.shape[1])[:, :most]
    for part in order.split(ROWS):
        rows = scores.index_select(0, queries.queries[part].to(scores.device))
        true = queries.true[part].to(scores.device)
        true = true[:, : int((true >= 0).sum(1).max())]
        found = rows.gather(1, true.clamp(min=0)).masked_fill(true < 0, -torch.inf).sort(dim=1, descending=True).values[:, :most]
        own = torch.zeros(len(rows), rows.shape[1] + 1, dtype=torch.bool, device=rows.device)  # the last column takes the padding
        own.scatter_(1, torch.where(true < 0, rows.shape[1], true), True)
        others = rows.masked_fill(own[:, :-1], -torch.inf)
        above = torch.stack([(others >= found[:, j : j + 1]).sum(1) + j for j in range(found.shape[1])], dim=1)
        there = torch.arange(found.shape[1], device=rows.device) < (true >= 0).sum(1, keepdim=True)
        out[part, : found.shape[1]] = torch.where(there, above, scores.shape[1]).cpu()
    return out


def precision_figures(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """mAP@R, R-Precision and R@1 from `places` [Q, P] and R = `wanted` [Q]: means over the queries, per cent.

    R-Precision is the share of true items among the first R. AP@R is 1/R times the sum, over the places r < R that hold a true
    item, of the share of true items among the first r + 1 (Musgrave et al., ECCV 2020, arXiv 2003.08505).
    """
    inside = found < wanted[:, None]
    hits = torch.arange(1, found.shape[1] + 1, dtype=torch.float64)
    precision = (hits / (found + 1)).where(inside, 0.0)
    return {
        "map_at_r": mean_percentage(precision.sum(1) / wanted),
        "r_precision": mean_percentage(inside.sum(1).double() / wanted),
        "r1": mean_percentage((found[:, 0] == 0).double()),
    }


def mean_percentage(values: Tensor) -> float:
    """100 times the mean of float64 [Q]."""
    return 100.0 * float(values.mean())


class RelevanceEvaluator(Evaluator):
    """What ECCV Caption and CxC share: `of_side(scores, queries)` gives the figures of one direction."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.benchmark: Benchmark | None = None
        self.match: Match | None = None

    def check(self, plan: Plan) -> None:
        self.benchmark = load_benchmark(self.name)

    def prepare(self, subject: Subject) -> None:
        assert self.benchmark is not None  # check comes first
        self.match = match(self.benchmark, subject, self.name)

    def headline(self, subject: Subject) -> dict[str, Any]:
        assert self.match is not None
        check_scores(subject.matrix, subject.image_of_caption)
        scores = subject.matrix
        rows, columns = self.match.images.to(scores.device), self.match.captions.to(scores.device)
        whole = (len(rows), len(columns)) == scores.shape  # in order then, for both number the ranked ones upwards
        part = scores if whole else scores.index_select(0, rows).index_select(1, columns)
        text, image = self.of_side(part, self.match.text), self.of_side(part.T, self.match.image)
        figures = {f"text_{name}": value for name, value in text.items()} | {f"image_{name}": v for name, v in image.items()}
        return {self.name: self.total(figures) | self.match.counts}

    def of_side(self, scores: Tensor, queries: Queries) -> dict[str, float]:
        """Figures of one direction, scores [queries, items]."""
        raise NotImplementedError

    def total(self, figures: dict[str, float]) -> dict[str, float]:
        """The figures of both directions, with what is made of them."""
        return figures


def scope(values: Mapping[str, Any]) -> str:
    """How much of the benchmark a corpus has: "" where all of it."""
    if not values["partial"]:
        return ""
    return (
        f"partial: {values['images']} of {values['images_of_benchmark']} images, "
        f"{values['captions']} of {values['captions_of_benchmark']} captions"
    )
