"""UNITER's encoder and heads for ONE pair, in float64, from the formulas (BERT, arXiv 1810.04805; UNITER, arXiv 1909.11740).

Nothing is padded, batched, packed or shared between pairs, and nothing of `tagsds.models` is called: the weights are a dict of
float64 tensors under the names that `model.safetensors` of an export has.

Shapes: L = word pieces with [CLS] and [SEP], R = regions, H = hidden width, D = width of a region feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tagsds.data.bank import Bank

Weights = dict[str, Tensor]
TIED = {"mlm.decoder.weight", "correct.decoder.weight"}  # both are the word embeddings


@dataclass
class Pair:
    """ids int64 [L]; features float64 [R, D]; boxes float64 [R, 4], fractions of the image; hidden bool [R]: zeroed regions."""

    ids: Tensor
    features: Tensor
    boxes: Tensor
    hidden: Tensor


def read_weights(folder: Path) -> Weights:
    return {name: value.double() for name, value in load_file(folder / "model.safetensors").items() if name not in TIED}


def pair_of(bank: Bank, ids: Tensor, image: int, hidden: Tensor | None = None) -> Pair:
    start, end = int(bank.regions.lengths[:image].sum()), int(bank.regions.lengths[: image + 1].sum())
    hidden = torch.zeros(end - start, dtype=torch.bool) if hidden is None else hidden
    return Pair(ids.long(), bank.regions.values[start:end].double(), bank.boxes[start:end].double(), hidden)


def caption(bank: Bank, number: int) -> Tensor:
    """Word pieces of a caption, [CLS] and [SEP] included: int64 [L]."""
    start = int(bank.tokens.lengths[:number].sum())
    return bank.tokens.values[start : start + int(bank.tokens.lengths[number])].long()


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def log_softmax(x: Tensor) -> Tensor:
    shifted = x - x.max()
    return shifted - torch.log(torch.exp(shifted).sum())


def embeddings(w: Weights, pair: Pair) -> Tensor:
    """[CLS] words [SEP] regions: [L + R, H]."""
    word, position, types = (w[f"text_embedding.{table}.weight"] for table in ("word", "position", "token_type"))
    words = layer_norm(w, "text_embedding.norm", word[pair.ids] + position[: len(pair.ids)] + types[0])
    x1, y1, x2, y2 = pair.boxes.T
    places = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], dim=1)
    seen = torch.stack([w["image_embedding.mask"] if gone else f for gone, f in zip(pair.hidden.tolist(), pair.features)])
    regions = layer_norm(w, "image_embedding.feature_norm", linear(w, "image_embedding.feature", seen))
    regions = regions + layer_norm(w, "image_embedding.box_norm", linear(w, "image_embedding.box", places)) + types[1]
    return torch.cat([words, layer_norm(w, "image_embedding.norm", regions)])


def attention(w: Weights, layer: str, x: Tensor, heads: int) -> Tensor:
    width = x.shape[1]
    size = width // heads
    parts = w[f"{layer}.qkv.weight"].split(width), w[f"{layer}.qkv.bias"].split(width)  # query, key, value one under the other
    query, key, value = (x @ weight.T + bias for weight, bias in zip(*parts))
    out = []
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        weight = torch.exp(query[:, columns] @ key[:, columns].T / math.sqrt(size))
        out.append(weight / weight.sum(dim=1, keepdim=True) @ value[:, columns])
    return linear(w, f"{layer}.attention_out", torch.cat(out, dim=1))


def states(w: Weights, pair: Pair, heads: int) -> Tensor:
    """States of the last layer, [L + R, H]."""
    x = embeddings(w, pair)
    number = 0
    while f"layers.{number}.qkv.weight" in w:
        layer = f"layers.{number}"
        x = layer_norm(w, f"{layer}.attention_norm", x + attention(w, layer, x, heads))
        inner = linear(w, f"{layer}.contract", gelu(linear(w, f"{layer}.expand", x)))
        x = layer_norm(w, f"{layer}.norm", x + inner)
        number += 1
    return x


def pooled(w: Weights, x: Tensor) -> Tensor:
    """tanh(W h_CLS + b): [H]."""
    return torch.tanh(linear(w, "pooler.dense", x[0]))


def rank_logit(w: Weights, x: Tensor) -> Tensor:
    """s(I, T) is its sigmoid."""
    return linear(w, "rank", pooled(w, x))[0]


def transform(w: Weights, head: str, row: Tensor) -> Tensor:
    return layer_norm(w, f"{head}.transform.norm", gelu(linear(w, f"{head}.transform.dense", row)))


def word_logits(w: Weights, head: str, row: Tensor) -> Tensor:
    """Head `mlm` or `correct` at one position: [V]."""
    return transform(w, head, row) @ w["text_embedding.word.weight"].T + w[f"{head}.decoder.bias"]


def region_feature(w: Weights, row: Tensor) -> Tensor:
    """The last matrix is W_f transposed: [D]."""
    return transform(w, "region_feature", row) @ w["image_embedding.feature.weight"] + w["region_feature.bias"]


def region_logits(w: Weights, row: Tensor) -> Tensor:
    return linear(w, "region_class.decoder", transform(w, "region_class", row))
