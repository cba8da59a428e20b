"""Checkpoints of the matchers' repositories, and what their code computes, literally: one image, one caption at a time.

The formulas are those of the released code where it departs from the paper: VSRN normalises each feature over the regions, SCAN
and BFAN have a leaky rectifier before the norm of the attention.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

State = dict[str, Tensor]
VOCAB, WORD, JOINT, REGION = 23, 6, 8, 10


def gru_shapes(name: str, inputs: int, both_ways: bool) -> dict[str, tuple[int, ...]]:
    ends = ("", "_reverse") if both_ways else ("",)
    parts = {"weight_ih": (3 * JOINT, inputs), "weight_hh": (3 * JOINT, JOINT), "bias_ih": (3 * JOINT,), "bias_hh": (3 * JOINT,)}
    return {f"{name}.{part}_l0{end}": shape for end in ends for part, shape in parts.items()}


def norm_state(name: str) -> State:
    state = {f"{name}.{part}": torch.randn(JOINT) for part in ("weight", "bias", "running_mean")}
    return state | {f"{name}.running_var": torch.rand(JOINT) + 0.5, f"{name}.num_batches_tracked": torch.tensor(7)}


def halves(kind: str, seed: int = 0, image_norm: bool = False) -> list[State]:
    """Image half and text half of a small model, with the keys of the released files."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (JOINT, REGION), "fc.bias": (JOINT,)}
    norms: State = {}
    if kind == "vsrn":
        shapes |= gru_shapes("img_rnn", JOINT, False)
        for n in range(1, 5):
            for conv in ("g", "theta", "phi", "W.0"):
                shapes |= {f"Rs_GCN_{n}.{conv}.weight": (JOINT, JOINT, 1), f"Rs_GCN_{n}.{conv}.bias": (JOINT,)}
            norms |= norm_state(f"Rs_GCN_{n}.W.1")
        norms |= norm_state("bn") if image_norm else {}
    scale = 0.15 if image_norm else 0.5  # without the first norm large weights would overflow in the graph
    image = {name: torch.randn(shape) * scale for name, shape in shapes.items()} | norms
    text = {"embed.weight": (VOCAB, WORD), **gru_shapes("rnn", WORD, kind != "vsrn")}
    return [image, {name: torch.randn(shape) * 0.5 for name, shape in text.items()}]


def captioner(seed: int = 1, hidden: int = 5, word: int = 4, joint: int = JOINT) -> State:
    """The third state of AOQ's VSRN, keys in its order."""
    torch.manual_seed(seed)

    def rnn(inputs: int) -> dict[str, tuple[int, ...]]:
        return {"weight_ih_l0": (3 * hidden, inputs), "weight_hh_l0": (3 * hidden, hidden), "bias_ih_l0": (3 * hidden,),
                "bias_hh_l0": (3 * hidden,)}  # fmt: skip

    shapes: dict[str, tuple[int, ...]] = {"encoder.vid2hid.weight": (hidden, joint), "encoder.vid2hid.bias": (hidden,)}
    shapes |= {f"encoder.rnn.{name}": shape for name, shape in rnn(hidden).items()}
    shapes |= {"decoder.embedding.weight": (VOCAB, word), "decoder.attention.linear1.weight": (hidden, 2 * hidden),
               "decoder.attention.linear1.bias": (hidden,), "decoder.attention.linear2.weight": (1, hidden)}  # fmt: skip
    shapes |= {f"decoder.rnn.{name}": shape for name, shape in rnn(word + hidden).items()}
    shapes |= {"decoder.out.weight": (VOCAB, hidden), "decoder.out.bias": (VOCAB,)}
    return {name: torch.randn(shape) * 0.5 for name, shape in shapes.items()}


OPTIONS = {
    "vsrn": {"use_abs": False, "no_imgnorm": False, "num_layers": 1, "measure": "cosine", "data_name": "coco_precomp"},
    "scan": {"cross_attn": "i2t", "agg_func": "Mean", "lambda_softmax": 4.0, "lambda_lse": 5.0,
             "raw_feature_norm": "clipped_l2norm",
             "bi_gru": True, "no_imgnorm": False, "no_txtnorm": False, "num_layers": 1, "precomp_enc_type": "basic"},
    "bfan": {"focal_type": "prob", "lambda_softmax": 20.0, "no_imgnorm": False, "no_txtnorm": False, "num_layers": 1},
}  # fmt: skip


def checkpoint(kind: str, parts: list[State] | None = None, **options) -> dict:
    """What the training saves."""
    opt = argparse.Namespace(**(OPTIONS[kind] | options))
    return {"epoch": 3, "model": parts or halves(kind), "best_rsum": 410.5, "opt": opt, "Eiters": 99}


# --- what they compute --------------------------------------------------------------------------------------------------


def gru_step(s: State, name: str, x: Tensor, h: Tensor, end: str = "") -> Tensor:
    a = s[f"{name}.weight_ih_l0{end}"] @ x + s[f"{name}.bias_ih_l0{end}"]
    b = s[f"{name}.weight_hh_l0{end}"] @ h + s[f"{name}.bias_hh_l0{end}"]
    n = len(h)
    r, z = torch.sigmoid(a[:n] + b[:n]), torch.sigmoid(a[n : 2 * n] + b[n : 2 * n])
    return (1 - z) * torch.tanh(a[2 * n :] + r * b[2 * n :]) + z * h


def gru(s: State, name: str, rows: list[Tensor], end: str = "") -> list[Tensor]:
    h, out = torch.zeros(s[f"{name}.weight_hh_l0{end}"].shape[1]), []
    for x in rows:
        h = gru_step(s, name, x, h, end)
        out.append(h)
    return out


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def batch_norm(s: State, name: str, x: Tensor) -> Tensor:
    x = (x - s[f"{name}.running_mean"]) / (s[f"{name}.running_var"] + 1e-5).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def vsrn_regions(image: State, features: Tensor) -> Tensor:
    """What enters the GRU over the regions, and the captioner: [N, JOINT]."""
    x = features @ image["fc.weight"].T + image["fc.bias"]
    if "bn.weight" not in image:  # Flickr30K's model, which has the norm behind the GRU, skips this one
        x = x / x.norm(dim=0)  # over the regions
    for n in range(1, 5):
        conv = {
            name: (image[f"Rs_GCN_{n}.{name}.weight"][:, :, 0], image[f"Rs_GCN_{n}.{name}.bias"])
            for name in ("g", "theta", "phi", "W.0")
        }
        g, theta, phi = (x @ conv[name][0].T + conv[name][1] for name in ("g", "theta", "phi"))
        mixed = (theta @ phi.T / len(x)) @ g
        x = x + batch_norm(image, f"Rs_GCN_{n}.W.1", mixed @ conv["W.0"][0].T + conv["W.0"][1])
    return x / x.norm(dim=0)


def vsrn(image: State, text: State, features: Tensor, ids: Tensor) -> Tensor:
    whole = gru(image, "img_rnn", list(vsrn_regions(image, features)))[-1]
    whole = batch_norm(image, "bn", whole) if "bn.weight" in image else whole
    return unit(whole) @ unit(gru(text, "rnn", list(text["embed.weight"][ids]))[-1])


def caption_loss(image: State, told: State, features: Tensor, ids: Tensor, most: int) -> Tensor:
    """The captioning loss of one pair, without dropout: the label is `most` words and a zero, the mask all that is no zero and the
    first zero; the words behind the first are told, at most - 1 of them."""
    words = ids.tolist()
    if len(words) > most:
        words = [*words[: most - 1], words[-1]]
    label = words + [0] * (most + 1 - len(words))
    mask = [float(k <= label.index(0)) for k in range(most + 1)]
    regions = vsrn_regions(image, features) @ told["encoder.vid2hid.weight"].T + told["encoder.vid2hid.bias"]
    x = gru(told, "encoder.rnn", list(regions))
    h, total = x[-1], torch.zeros(())
    for step in range(most - 1):
        energy = torch.stack([
            told["decoder.attention.linear2.weight"][0]
            @ torch.tanh(told["decoder.attention.linear1.weight"] @ torch.cat([xr, h]) + told["decoder.attention.linear1.bias"])
            for xr in x
        ])  # fmt: skip
        context = energy.softmax(0) @ torch.stack(x)
        h = gru_step(told, "decoder.rnn", torch.cat([told["decoder.embedding.weight"][label[step]], context]), h, "")
        logits = told["decoder.out.weight"] @ h + told["decoder.out.bias"]
        total = total - mask[step + 1] * logits.log_softmax(0)[label[step + 1]]
    return total


def fragments(image: State, text: State, features: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    regions = torch.stack([unit(f) for f in features @ image["fc.weight"].T + image["fc.bias"]])
    rows = list(text["embed.weight"][ids])
    forth, back = gru(text, "rnn", rows), gru(text, "rnn", rows[::-1], "_reverse")[::-1]
    return regions, torch.stack([unit((f + b) / 2) for f, b in zip(forth, back)])


def attended(query: Tensor, context: Tensor, sharpness: float, focal: str = "") -> Tensor:
    """The attended vector of each query: [Q, E]."""
    x = context @ query.T
    x = torch.where(x > 0, x, 0.1 * x)
    x = x / x.norm(dim=1, keepdim=True)  # of each context fragment, over the queries
    out = []
    for row in (sharpness * x.T).softmax(dim=1):
        if focal:
            g = row.sqrt() if focal == "prob" else torch.ones_like(row)
            row = row * torch.tensor([float(sum((a - b) * c for b, c in zip(row, g)) > 0) for a in row])
        out.append(row / row.sum() @ context)
    return torch.stack(out)


def relevance(query: Tensor, context: Tensor, sharpness: float, focal: str = "") -> Tensor:
    return torch.nn.functional.cosine_similarity(query, attended(query, context, sharpness, focal), dim=1)


def scan(image: State, text: State, features: Tensor, ids: Tensor, opt: dict) -> Tensor:
    regions, words = fragments(image, text, features, ids)
    sides = (words, regions) if opt["cross_attn"] == "t2i" else (regions, words)
    r = relevance(*sides, opt["lambda_softmax"])
    return r.mean() if opt["agg_func"] == "Mean" else (opt["lambda_lse"] * r).exp().sum().log() / opt["lambda_lse"]


def bfan(image: State, text: State, features: Tensor, ids: Tensor, opt: dict) -> Tensor:
    regions, words = fragments(image, text, features, ids)
    settings = (opt["lambda_softmax"], opt["focal_type"])
    return relevance(words, regions, *settings).mean() + relevance(regions, words, *settings).mean()
