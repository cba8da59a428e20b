"""AOQ's training step, literally (arXiv 2003.03669; method 6): one pair after another, float64, without dropout.

SCAN's and BFAN's similarities are those of tests/models/matcher_reference.py; VSRN is written here for a batch of images, since its
BatchNorm normalises over one, with the norms of the released code (column_norm). The reductions are the released ones: each term
summed over the pairs, the captioning loss summed over the words and averaged over the captions. The offline draws are given.

Where both this file and the program depart from the released code, and why:

- A caption of the same image is no online negative of a pair. The released code takes all cells off the diagonal for negatives, and
  so pushes apart what belongs together.
- Every parameter takes one Adam step, and counts once in the norm that is clipped. The released VSRN names the captioner's
  parameters twice to its optimiser: at each iteration they take two Adam steps, count twice in the norm, and are clipped twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.models.matcher_reference import SIMILARITY, Weights, caption_nll, gru, length_one

MARGIN_ON, MARGIN_OFF, ALPHA, BETA = 0.2, 0.0, 0.3, 1.5
CLIP, BETAS, EPS = 2.0, (0.9, 0.999), 1e-8


@dataclass
class Step:
    """Of each pair: region features float64 [R, D] and word pieces int64 [L] of I, T, I_off, T_off, I'_off, T'_off; and the number
    of I."""

    image: list[Tensor]
    caption: list[Tensor]
    image_off: list[Tensor]
    caption_off: list[Tensor]
    image_other: list[Tensor]
    caption_other: list[Tensor]
    number: list[int]


def batch_norm(w: Weights, buffers: Weights, name: str, rows: Tensor) -> Tensor:
    """Over all rows [N, E] of a forward, as in training; the running statistics move by a tenth."""
    mean = rows.mean(dim=0)
    variance = ((rows - mean) ** 2).mean(dim=0)
    unbiased = variance.detach() * len(rows) / (len(rows) - 1)
    for key, now in (("running_mean", mean.detach()), ("running_var", unbiased)):
        buffers[f"{name}.{key}"] = 0.9 * buffers[f"{name}.{key}"] + 0.1 * now
    return (rows - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def column_norm(x: Tensor) -> Tensor:
    """Each feature divided by its length over the regions: [R, E]."""
    return x / x.pow(2).sum(dim=0).sqrt()


def vsrn_images(w: Weights, buffers: Weights, config: Any, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """One forward of a batch: a unit vector [E] and region states [R, E] of each image."""
    v = [features @ w["project.weight"].T + w["project.bias"] for features in images]
    if config.input_norm:
        v = [column_norm(x) for x in v]
    for layer in range(config.graph_layers):
        name, changes = f"graph.{layer}", []
        for x in v:
            theta, phi, g = (x @ w[f"{name}.{part}.weight"].T + w[f"{name}.{part}.bias"] for part in ("theta", "phi", "g"))
            mixed = (theta @ phi.T / len(x)) @ g
            changes.append(mixed @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"])
        normed = batch_norm(w, buffers, f"{name}.norm", torch.cat(changes)).split([len(x) for x in v])
        v = [x + change for x, change in zip(v, normed)]
    states = [column_norm(x) for x in v]
    last = torch.stack([gru(w, "region_gru", list(x))[-1] for x in states])
    if config.image_norm:
        last = batch_norm(w, buffers, "image_norm", last)
    return [length_one(x) for x in last], states


def vsrn_caption(w: Weights, pieces: Tensor) -> Tensor:
    return length_one(gru(w, "text.gru", [w["text.word.weight"][piece] for piece in pieces.tolist()])[-1])


def hinge(x: Tensor) -> Tensor:
    return x if x > 0 else 0 * x


def losses(kind: str, w: Weights, buffers: Weights, config: Any, step: Step) -> dict[str, Tensor]:
    """Each term of the loss, and the total. VSRN encodes three batches of images, in this order: I, I_off, I'_off."""
    if kind == "vsrn":
        images, states = vsrn_images(w, buffers, config, step.image)
        images_off, _ = vsrn_images(w, buffers, config, step.image_off)
        images_other, _ = vsrn_images(w, buffers, config, step.image_other)
        captions, captions_off, captions_other = (
            [vsrn_caption(w, pieces) for pieces in side] for side in (step.caption, step.caption_off, step.caption_other)
        )
    else:
        images, images_off, images_other = step.image, step.image_off, step.image_other
        captions, captions_off, captions_other = step.caption, step.caption_off, step.caption_other

    def s(image: Tensor, caption: Tensor) -> Tensor:
        return image @ caption if kind == "vsrn" else SIMILARITY[kind](w, config, image, caption)

    names = ("online_caption", "online_image", "offline_caption", "offline_image", "offline_both", "offline_others")
    terms = {name: torch.zeros((), dtype=torch.float64) for name in names}
    for b, (image, caption) in enumerate(zip(images, captions)):
        true = s(image, caption)
        others = [o for o in range(len(images)) if step.number[o] != step.number[b]]
        caption_on = max((s(image, captions[o]) for o in others), key=Tensor.item)
        image_on = max((s(images[o], caption) for o in others), key=Tensor.item)
        caption_off, image_off = s(image, captions_off[b]), s(images_off[b], caption)
        w_caption = BETA - (caption_off - caption_on) / ALPHA
        w_image = BETA - (image_off - image_on) / ALPHA
        terms["online_caption"] = terms["online_caption"] + w_caption * hinge(MARGIN_ON + caption_on - true)
        terms["online_image"] = terms["online_image"] + w_image * hinge(MARGIN_ON + image_on - true)
        terms["offline_caption"] = terms["offline_caption"] + hinge(MARGIN_OFF + caption_off - true)
        terms["offline_image"] = terms["offline_image"] + hinge(MARGIN_OFF + image_off - true)
        terms["offline_both"] = terms["offline_both"] + hinge(MARGIN_OFF + s(images_off[b], captions_off[b]) - true)
        terms["offline_others"] = terms["offline_others"] + hinge(MARGIN_OFF + s(images_other[b], captions_other[b]) - true)
    if kind == "vsrn":
        told = [caption_nll(w, config, list(x), pieces) for x, pieces in zip(states, step.caption)]
        terms["captioning"] = sum(told, torch.zeros(())) / len(told)
    return terms | {"total": sum(terms.values(), torch.zeros(()))}


class Adam:
    """Of a few named parameters, with the gradient's norm clipped at CLIP over all of them."""

    def __init__(self, w: Weights) -> None:
        self.mean = {name: torch.zeros_like(p) for name, p in w.items()}
        self.square = {name: torch.zeros_like(p) for name, p in w.items()}
        self.steps = 0

    def step(self, w: Weights, gradients: Weights, lr: float) -> None:
        self.steps += 1
        norm = sum(float(g.pow(2).sum()) for g in gradients.values()) ** 0.5
        for name, g in gradients.items():
            if norm > CLIP:
                g = g * CLIP / (norm + 1e-6)
            self.mean[name] = BETAS[0] * self.mean[name] + (1 - BETAS[0]) * g
            self.square[name] = BETAS[1] * self.square[name] + (1 - BETAS[1]) * g**2
            mean = self.mean[name] / (1 - BETAS[0] ** self.steps)
            square = self.square[name] / (1 - BETAS[1] ** self.steps)
            w[name] = w[name] - lr * mean / (square.sqrt() + EPS)


def train(kind: str, w: Weights, buffers: Weights, config: Any, steps: list[Step], rates: list[float]) -> list[dict[str, float]]:
    """The losses of each step; `w` and `buffers` are left as they are after the last."""
    adam, rows = Adam(w), []
    for step, lr in zip(steps, rates):
        for name in w:
            w[name] = w[name].detach().requires_grad_()
        terms = losses(kind, w, buffers, config, step)
        found = torch.autograd.grad(terms["total"], list(w.values()), allow_unused=True)
        gradients = {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(w.items(), found)}
        with torch.no_grad():
            adam.step(w, gradients, lr)
        rows.append({name: float(term) for name, term in terms.items()})
    return rows
