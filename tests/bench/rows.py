"""The rows that `run.py` times: the scorer alone, the step in its precisions, the plain step, savings, options and kernels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.data.pairs import Pairs
from tagsds.models import UniterModel
from tagsds.scoring.scorer import Scorer
from tests.bench.operations import Call, recorded
from tests.bench.padded_scorer import PaddedScorer
from tests.bench.switch import switches
from tests.bench.variants import Variants

DROPOUT = 0.1  # of the rows that have it on, as published


@dataclass
class Row:
    """What is timed.

    name, kind   'scorer' or 'step'; the ratio is to the first row of the kind
    run          one scoring call, or the forward of one step
    model        whose gradients are cleared before a step
    units        true pairs of a step, pairs of a scoring call
    count        a call to count the operations of, where they are not those of the first row of the kind
    """

    name: str
    kind: str
    run: Callable[[], Tensor]
    model: UniterModel
    units: int
    counted: bool = False
    calls: list[Call] = field(default_factory=list)

    def once(self) -> None:
        """Forward, and backward of a step."""
        if self.kind == "scorer":
            self.run()
        else:
            self.model.zero_grad(set_to_none=True)
            self.run().backward()

    def first(self) -> float:
        """The same once, with its operations noted; the loss, or the mean score."""
        self.model.zero_grad(set_to_none=True)
        with recorded(self.model) as calls:
            value = self.run()
        if self.kind != "scorer":
            value.backward()
        self.calls = calls
        return float(value.detach().float().mean())


def scored(scorer: Scorer, pairs: Pairs) -> Callable[[], Tensor]:
    return lambda: scorer(pairs)


class Switched(Row):
    """A row with kernels switched, in backward as well."""

    context: Callable[[], AbstractContextManager[Any]]

    def once(self) -> None:
        with self.context():
            super().once()

    def first(self) -> float:
        with self.context():
            return super().first()


def switched(row: Row, name: str, context: Callable[[], AbstractContextManager[Any]]) -> Switched:
    found = Switched(name, row.kind, row.run, row.model, row.units)
    found.context = context
    return found


def rows(args: argparse.Namespace, folder: Path) -> list[Row]:
    """All rows; the first of each kind is the package as `args` set it."""
    base = Variants(args)
    # the weights of the other precision, and dropout on
    other = "bf16" if args.dtype == "fp32" else "fp32"
    second = Variants(args, base.bank, dtype=other)
    return scorer_rows(base, second) + step_rows(base, second, folder)


def scorer_rows(base: Variants, second: Variants) -> list[Row]:
    pairs = base.mined_pairs()

    def row(name: str, scorer: Scorer, counted: bool = False) -> Row:
        return Row(name, "scorer", scored(scorer, pairs), scorer.model, len(pairs), counted)

    first = row("scorer", base.scorer, True)
    found = [
        first,
        row(f"scorer, weights in {second.dtype}", second.scorer, True),
        row("scorer, padded", PaddedScorer(base.model)),
    ]
    if base.dtype == "fp32":
        found.insert(1, row("scorer, fp32 weights, autocast to bf16", Scorer(base.model, dtype=torch.bfloat16), True))
    return found + [switched(first, f"scorer, {name}", context) for name, context in switches().items()]


def step_rows(base: Variants, second: Variants, folder: Path) -> list[Row]:
    args = base.args
    p = args.dropout or DROPOUT

    def row(name: str, of: Variants, run: Callable[[], Tensor], counted: bool = False) -> Row:
        return Row(name, "step", run, of.model, args.captions, counted)

    first = row("ours", base, base.ours, True)
    found = [
        first,
        row("plain", base, base.plain),
        row("plain, attention written out", base, base.written_out),
        row(f"ours, weights in {second.dtype}", second, second.ours, True),
        row(f"plain, attention written out, weights in {second.dtype}", second, second.written_out),
    ]
    for of in (base, second):
        dropping = Variants(args, base.bank, of.dtype, p)
        words = f"dropout {p:g}" + ("" if of is base else f", weights in {of.dtype}")
        found.append(row(f"ours, {words}", dropping, dropping.ours, True))
        if of is base:
            found.append(row(f"plain, attention written out, {words}", dropping, dropping.written_out))
    found += [row(name, base, run) for name, run in base.savings(folder).items()]
    found.append(row("option: bf16 mining", base, base.bf16_mining, True))
    found.append(row("option: shared negatives", base, base.shared_negatives, True))
    return found + [switched(first, name, context) for name, context in switches().items()]
