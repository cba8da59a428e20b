"""The matchers spelt out for one image and one caption at a time, with loops over fragments, from the papers' formulas.

A GRU is written as its equations (torch's order of the gates: reset, update, new), attended vectors are built, and the weights
are the model's own parameters, read by name, so that gradients can be compared parameter by parameter.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

Weights = dict[str, Tensor]


def length_one(x: Tensor) -> Tensor:
    return x / x.pow(2).sum().sqrt()


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    out = w[f"{name}.weight"] @ x
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def gru_step(w: Weights, name: str, suffix: str, x: Tensor, h: Tensor) -> Tensor:
    from_x = w[f"{name}.weight_ih{suffix}"] @ x + w[f"{name}.bias_ih{suffix}"]
    from_h = w[f"{name}.weight_hh{suffix}"] @ h + w[f"{name}.bias_hh{suffix}"]
    (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3), from_h.chunk(3)
    reset, update = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    return (1 - update) * torch.tanh(xn + reset * hn) + update * h


def gru(w: Weights, name: str, rows: list[Tensor], suffix: str = "_l0") -> list[Tensor]:
    h = torch.zeros(w[f"{name}.weight_hh{suffix}"].shape[1], dtype=torch.float64)
    states = []
    for row in rows:
        h = gru_step(w, name, suffix, row, h)
        states.append(h)
    return states


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """BatchNorm in eval mode."""
    centred = (x - w[f"{name}.running_mean"]) / (w[f"{name}.running_var"] + 1e-5).sqrt()
    return centred * w[f"{name}.weight"] + w[f"{name}.bias"]


# SCAN and BFAN


def region_fragments(w: Weights, features: Tensor) -> list[Tensor]:
    return [length_one(linear(w, "project", f)) for f in features.double()]


def word_fragments(w: Weights, pieces: Tensor) -> list[Tensor]:
    rows = [w["text.word.weight"][piece] for piece in pieces.tolist()]
    forth = gru(w, "text.gru", rows)
    back = gru(w, "text.gru", rows[::-1], "_l0_reverse")[::-1]
    return [length_one((f + b) / 2) for f, b in zip(forth, back)]


def attention(queries: list[Tensor], context: list[Tensor], sharpness: float) -> list[list[Tensor]]:
    """Weight of each context fragment, for each query."""
    leaky = [[s if (s := q @ c) > 0 else 0.1 * s for c in context] for q in queries]
    out = []
    for row in leaky:
        logits = []
        for k, x in enumerate(row):
            column = torch.stack([other[k] for other in leaky])
            logits.append((sharpness * x / column.pow(2).sum().sqrt()).exp())
        out.append([e / sum(logits) for e in logits])
    return out


def focal(weights: list[Tensor], kind: str) -> list[Tensor]:
    g = [torch.ones_like(x) if kind == "equal" else x.sqrt() for x in weights]
    tie = 1e-5 * sum(gi * xi for gi, xi in zip(g, weights))
    keep = [bool(sum(gi * (xj - xi) for gi, xi in zip(g, weights)) > tie) for xj in weights]
    if not any(keep):
        return weights
    total = sum(x for x, k in zip(weights, keep) if k)
    return [x / total if k else 0 * x for x, k in zip(weights, keep)]


def relevances(queries: list[Tensor], context: list[Tensor], weights: list[list[Tensor]]) -> list[Tensor]:
    out = []
    for q, row in zip(queries, weights):
        attended = sum(a * c for a, c in zip(row, context))
        out.append(q @ attended / (q.pow(2).sum().sqrt() * attended.pow(2).sum().sqrt()))
    return out


def scan(w: Weights, config, features: Tensor, pieces: Tensor) -> Tensor:
    queries, context = word_fragments(w, pieces), region_fragments(w, features)
    if config.direction == "i2t":
        queries, context = context, queries
    scores = relevances(queries, context, attention(queries, context, config.lambda_softmax))
    if config.pooling == "avg":
        return sum(scores) / len(scores)
    return torch.log(sum(torch.exp(config.lambda_lse * score) for score in scores)) / config.lambda_lse


def bfan(w: Weights, config, features: Tensor, pieces: Tensor) -> Tensor:
    regions, words = region_fragments(w, features), word_fragments(w, pieces)
    total = torch.zeros((), dtype=torch.float64)
    for queries, context in ((words, regions), (regions, words)):
        weights = [focal(row, config.focal) for row in attention(queries, context, config.lambda_softmax)]
        scores = relevances(queries, context, weights)
        total = total + sum(scores) / len(scores)
    return total


# VSRN


def region_states(w: Weights, config, features: Tensor) -> list[Tensor]:
    v = [linear(w, "project", f) for f in features.double()]
    for layer in range(config.graph_layers):
        name, nodes = f"graph.{layer}", []
        for vi in v:
            mixed = torch.zeros_like(vi)
            for vj in v:
                affinity = linear(w, f"{name}.theta", vi) @ linear(w, f"{name}.phi", vj) / len(v)
                mixed = mixed + affinity * linear(w, f"{name}.g", vj)
            nodes.append(vi + norm(w, f"{name}.norm", linear(w, f"{name}.out", mixed)))
        v = nodes
    return [length_one(vi) for vi in v]


def vsrn(w: Weights, config, features: Tensor, pieces: Tensor) -> Tensor:
    image = gru(w, "region_gru", region_states(w, config, features))[-1]
    if config.image_norm:
        image = norm(w, "image_norm", image)
    caption = gru(w, "text.gru", [w["text.word.weight"][piece] for piece in pieces.tolist()])[-1]
    return length_one(image) @ length_one(caption)


def told(pieces: list[int], most: int) -> list[int]:
    """The words of a caption as the captioner is taught them: cut to `most` with the end kept, else word 0 behind the end."""
    return [*pieces[: most - 1], pieces[-1]] if len(pieces) > most else [*pieces, 0][:most]


def caption_nll(w: Weights, config, states: list[Tensor], pieces: Tensor) -> Tensor:
    """-log p of the words behind the first, given the region states; without dropout."""
    x = gru(w, "captioner.region_gru", [linear(w, "captioner.region", s) for s in states])
    h = x[-1]
    total = torch.zeros((), dtype=torch.float64)
    words = told(pieces.tolist(), config.caption_pieces)
    for before, after in pairwise(words):
        energy = [linear(w, "captioner.score", linear(w, "captioner.attention", torch.cat([xr, h])).tanh()).squeeze() for xr in x]
        exps = [e.exp() for e in energy]
        context = sum(e * xr for e, xr in zip(exps, x)) / sum(exps)
        h = gru_step(w, "captioner.cell", "", torch.cat([w["captioner.word.weight"][before], context]), h)
        logits = linear(w, "captioner.next_word", h)
        total = total + logits.exp().sum().log() - logits[after]
    return total


SIMILARITY = {"vsrn": vsrn, "scan": scan, "bfan": bfan}
