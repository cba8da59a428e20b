"""Floating-point operations (FLOP) that a step and a scoring call cannot avoid, counted from the pairs that they forward.

The formulas are those of `tagsds.estimate.work.Stream`; here the lengths are those of the actual pairs. Counted: the linear layers
of every token (the first layer's q, k, v and the feature projection once per table row; in the last layer k and v of all tokens,
the rest for the kept positions), attention (4 L H a query token) and the vocabulary logits. A forward with a gradient counts
three times, without the gradient of the features, which nothing asks for. Left out, since they are below a thousandth: norms,
activations, the box vectors, and the heads on [CLS] and on single words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.estimate.work import Sizes, Stream
from tagsds.models import UniterModel

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Call:
    """Part of a forward: a pass through the layers, the embedding of two tables, or word logits."""

    stream: Stream
    precision: str
    gradient: bool
    pairs: int = 0

    def flop(self, sizes: Sizes, feature_dim: int) -> float:
        count = self.stream.flop_with_gradient if self.gradient else self.stream.flop
        return count(sizes, feature_dim)


def sizes_of(model: UniterModel) -> Sizes:
    c = model.config
    return Sizes(c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.num_attention_heads, c.vocab_size)


def table_stream(texts: Ragged, images: Images) -> Stream:
    """Of the embedding of both tables."""
    regions = images.regions.values.shape[0]
    return Stream(regions=regions, rows=regions + texts.values.shape[0])


def layer_stream(pairs: Pairs, keep: Tensor | None) -> Stream:
    """Of the layers; `keep` int64 [K] as `UniterModel.forward` has it."""
    lengths = pairs.lengths.double()
    tokens, squares = float(lengths.sum()), float(lengths.square().sum())
    if keep is None:
        return Stream(tokens=tokens, squares=squares, keep=tokens, seen=squares)
    owner = torch.searchsorted(pairs.lengths.cumsum(0), keep, right=True)
    return Stream(tokens=tokens, squares=squares, keep=len(keep), seen=float(lengths[owner].sum()))


@contextmanager
def recorded(model: UniterModel) -> Iterator[list[Call]]:
    """The list of calls that `model` receives inside."""
    calls: list[Call] = []
    embed = model.embed

    def note(stream: Stream, pairs: int = 0) -> None:
        weight = model.rank.weight
        device = weight.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        calls.append(Call(stream, NAMES[precision], torch.is_grad_enabled(), pairs))

    def embedded(texts: Ragged, images: Images) -> Any:
        note(table_stream(texts, images))
        return embed(texts, images)

    def forwarded(module: Any, args: tuple, kwargs: dict) -> None:
        given = dict(zip(("pairs", "keep", "table"), args)) | kwargs
        note(layer_stream(given["pairs"], given.get("keep")), len(given["pairs"]))

    def worded(module: Any, args: tuple) -> None:
        note(Stream(words=args[0].shape[0]))

    hooks = [model.register_forward_pre_hook(forwarded, with_kwargs=True)]
    hooks += [head.register_forward_pre_hook(worded) for head in (model.mlm, model.correct)]
    try:
        with patch.object(model, "embed", embedded):
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def summed(streams: list[Stream]) -> Stream:
    return Stream(*(sum(getattr(stream, part.name) for stream in streams) for part in fields(Stream)))


def flop_of(calls: list[Call], sizes: Sizes, feature_dim: int) -> float:
    return sum(call.flop(sizes, feature_dim) for call in calls)


def table(calls: list[Call], sizes: Sizes, feature_dim: int) -> list[str]:
    """Lines for people: pairs, tokens and GFLOP without and with a gradient, and what they consist of."""
    lines = [f"{'operations that cannot be avoided':36} {'pairs':>8} {'tokens':>9} {'GFLOP':>9}"]
    for gradient, name in ((False, "without a gradient"), (True, "with a gradient, forward and backward")):
        some = [call for call in calls if call.gradient == gradient]
        stream = summed([call.stream for call in some])
        pairs = sum(call.pairs for call in some)
        lines.append(f"{name:36} {pairs:8,} {stream.tokens:9,.0f} {flop_of(some, sizes, feature_dim) / 1e9:9.1f}")
        for part, value in parts(stream, sizes, feature_dim).items():
            backward = 2 * value if gradient and part == "features" else 3 * value if gradient else value
            lines.append(f"  {part:34} {'':8} {'':9} {backward / 1e9:9.1f}")
    return lines


def parts(stream: Stream, sizes: Sizes, feature_dim: int) -> dict[str, float]:
    """FLOP of a forward by kind; their sum is `stream.flop`."""
    H, layers = sizes.hidden, sizes.layers
    features = stream.features(sizes, feature_dim)
    rows = 6 * H * H * stream.rows
    attention = 4 * H * ((layers - 1) * stream.squares + stream.seen)
    words = stream.words * (2 * H * H + 2 * H * sizes.vocabulary)
    linear = stream.flop(sizes, feature_dim) - features - rows - attention - words
    named = {"features": features, "first q, k, v": rows, "linear layers": linear}
    return named | {"attention": attention, "vocabulary": words}
