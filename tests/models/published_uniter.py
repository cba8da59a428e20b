"""Checkpoints in UNITER's published layout, and what they compute, literally.

`state_dict` writes the keys that the published files have, with random values. `forward` is the model of those keys written from
the formulas (BERT, arXiv 1810.04805; UNITER, 1909.11740; TAGS-DC's heads), one pair at a time, nothing packed, shared or fused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def shapes(
    vocab: int = 50, width: int = 128, layers: int = 2, inner: int = 64, positions: int = 24, region_dim: int = 20, classes: int = 9
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a TAGS-DC checkpoint with every head, in UNITER's spelling."""
    out: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        out.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def layer_norm(name: str) -> None:
        out.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    for name, rows in (("word", vocab), ("position", positions), ("token_type", 2)):
        out[f"uniter.embeddings.{name}_embeddings.weight"] = (rows, width)
    layer_norm("uniter.embeddings.LayerNorm")
    linear("uniter.img_embeddings.img_linear", width, region_dim)
    layer_norm("uniter.img_embeddings.img_layer_norm")
    layer_norm("uniter.img_embeddings.pos_layer_norm")
    linear("uniter.img_embeddings.pos_linear", width, 7)
    out["uniter.img_embeddings.mask_embedding.weight"] = (2, region_dim)
    layer_norm("uniter.img_embeddings.LayerNorm")
    for n in range(layers):
        layer = f"uniter.encoder.layer.{n}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, width)
        linear(f"{layer}.output.dense", width, inner)
        layer_norm(f"{layer}.output.LayerNorm")
    linear("uniter.pooler.dense", width, width)
    for head in ("cls", "correction_output"):
        out[f"{head}.predictions.bias"] = (vocab,)
        linear(f"{head}.predictions.transform.dense", width, width)
        layer_norm(f"{head}.predictions.transform.LayerNorm")
        out[f"{head}.predictions.decoder.weight"] = (vocab, width)
    for head in ("feat_regress", "region_classifier"):
        linear(f"{head}.net.0", width, width)
        layer_norm(f"{head}.net.2")
    out["feat_regress.weight"], out["feat_regress.bias"] = (width, region_dim), (region_dim,)
    linear("region_classifier.net.3", classes, width)
    for head, rows in (("itm_output", 2), ("rank_output", 1), ("disc_output", 2)):
        linear(head, rows, width)
    return out


TIED = {
    "cls.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
    "correction_output.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
    "feat_regress.weight": "uniter.img_embeddings.img_linear.weight",
}


def state_dict(seed: int = 0, dtype: torch.dtype = torch.float32, std: float = 0.2, **sizes: int) -> State:
    """Random values: LayerNorm around 1, tied keys equal, the unhidden row of the mask embedding zero, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}
    for name, shape in shapes(**sizes).items():
        value = torch.randn(shape, generator=generator).mul_(std)
        state[name] = (value + 1 if "norm" in name.lower() and name.endswith("weight") else value).to(dtype)
    state["feat_regress.net.2.weight"] += 1
    state["region_classifier.net.2.weight"] += 1
    state["uniter.img_embeddings.mask_embedding.weight"][0] = 0
    return {name: state[TIED.get(name, name)] for name in state}


def without(state: State, *beginnings: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(beginnings)}


def respelt(state: State, prefix: str = "uniter.", module: str = "", old_norm: bool = False) -> State:
    """The same file as others wrote it."""
    out = {}
    for name, value in state.items():
        name = prefix + name.removeprefix("uniter.") if name.startswith("uniter.") else name
        is_norm = "LayerNorm" in name or "layer_norm" in name or name.startswith(("feat_regress.net.2", "region_classifier.net.2"))
        if old_norm and is_norm:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        out[module + name] = value
    return out


# --- what it computes ----------------------------------------------------------------------------------------------------


def dense(s: State, name: str, x: Tensor) -> Tensor:
    return torch.stack([s[f"{name}.weight"] @ row + s[f"{name}.bias"] for row in x])


def layer_norm(s: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-12).sqrt() * s[f"{name}.weight"] + s[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention(s: State, name: str, x: Tensor, heads: int) -> Tensor:
    query, key, value = (dense(s, f"{name}.{part}", x) for part in ("query", "key", "value"))
    width = x.shape[1] // heads
    out = torch.zeros_like(x)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        weights = (query[:, columns] @ key[:, columns].T / math.sqrt(width)).exp()
        out[:, columns] = weights / weights.sum(dim=1, keepdim=True) @ value[:, columns]
    return out


def forward(s: State, ids: Tensor, features: Tensor, boxes: Tensor, masked: Tensor, heads: int) -> dict[str, Tensor]:
    """One pair. ids int64 [L] with [CLS] and [SEP]; features [R, D]; boxes [R, 4], fractions; masked bool [R]."""
    e, i = "uniter.embeddings", "uniter.img_embeddings"
    types = s[f"{e}.token_type_embeddings.weight"]
    words = s[f"{e}.word_embeddings.weight"][ids] + s[f"{e}.position_embeddings.weight"][: len(ids)] + types[0]
    words = layer_norm(s, f"{e}.LayerNorm", words)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    seven = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], dim=1)
    features = torch.where(masked[:, None], torch.zeros_like(features), features) + s[f"{i}.mask_embedding.weight"][masked.long()]
    regions = layer_norm(s, f"{i}.img_layer_norm", dense(s, f"{i}.img_linear", features))
    regions = regions + layer_norm(s, f"{i}.pos_layer_norm", dense(s, f"{i}.pos_linear", seven)) + types[1]
    x = torch.cat([words, layer_norm(s, f"{i}.LayerNorm", regions)])
    layers = 1 + max(int(name.split(".")[3]) for name in s if name.startswith("uniter.encoder.layer."))
    for n in range(layers):
        layer = f"uniter.encoder.layer.{n}"
        mixed = dense(s, f"{layer}.attention.output.dense", attention(s, f"{layer}.attention.self", x, heads))
        x = layer_norm(s, f"{layer}.attention.output.LayerNorm", x + mixed)
        inner = gelu(dense(s, f"{layer}.intermediate.dense", x))
        x = layer_norm(s, f"{layer}.output.LayerNorm", x + dense(s, f"{layer}.output.dense", inner))
    pooled = torch.tanh(dense(s, "uniter.pooler.dense", x[:1]))
    out = {"joint": x, "pooled": pooled, "discriminate": dense(s, "disc_output", x)}
    out |= {"itm": dense(s, "itm_output", pooled), "rank": dense(s, "rank_output", pooled)}
    for name, head in (("mlm", "cls"), ("correct", "correction_output")):
        told = layer_norm(s, f"{head}.predictions.transform.LayerNorm", gelu(dense(s, f"{head}.predictions.transform.dense", x)))
        out[name] = told @ s[f"{head}.predictions.decoder.weight"].T + s[f"{head}.predictions.bias"]
    for name, head in (("region_feature", "feat_regress"), ("region_class", "region_classifier")):
        told = layer_norm(s, f"{head}.net.2", gelu(dense(s, f"{head}.net.0", x)))
        out[name] = (
            told @ s["feat_regress.weight"] + s["feat_regress.bias"]
            if name == "region_feature"
            else dense(s, f"{head}.net.3", told)
        )
    return out
