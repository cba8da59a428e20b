"""Tailored negatives: refill a masked caption, and keep what is a new and false sentence of the image
(TAGS-DC, arXiv 2111.03349).

Shapes: B = captions, L = padded length, M = maskings of a caption, R = refills of a masking, C = M * R candidates,
n = masked positions of all maskings, V = word pieces, A = captions annotated for an image.
Sentences are dense int64 padded with `vocab.pad`. Nothing here carries a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tagsds.data.masking import ordinary_pieces
from tagsds.data.vocabulary import Vocabulary


@torch.no_grad()
def refill(logits: Tensor, vocab: Vocabulary, tau: float, refills: int, generator: torch.Generator) -> Tensor:
    """Pieces for masked positions, drawn independently from softmax(logits / tau): logits float [n, V] -> int64 [n, R].

    In float32 whatever the logits are. The special pieces are left out before the softmax, so that none can be drawn,
    not even by rounding.
    """
    pieces = ordinary_pieces(vocab, logits.device)
    if logits.shape[0] == 0:
        return pieces.new_empty(0, refills)
    probability = logits[:, pieces].float().div_(tau).softmax(dim=-1)
    return pieces[torch.multinomial(probability, refills, replacement=True, generator=generator)]


def write(ids: Tensor, chosen: Tensor, pieces: Tensor) -> Tensor:
    """The candidate sentences: ids [B, L], chosen bool [B, M, L], pieces [n, R] -> int64 [B, M * R, L].

    Rows of `pieces` are in the order of `chosen.nonzero()`. Candidate m * R + r is masking m with its positions filled
    by draw r; every other position is the caption's.
    """
    refills = pieces.shape[1]
    canvas = ids[:, None, :, None].repeat(1, chosen.shape[1], 1, refills)  # [B, M, L, R]
    canvas[chosen] = pieces.to(ids.dtype)
    return canvas.transpose(2, 3).flatten(1, 2)


@dataclass
class Filtered:
    """`keep` bool [B, C]. `counts`: int64 [] each, candidates of the whole batch: "written", then what is left after
    each filter in turn: "not_annotated", "distinct", "false_of_image" (the last is keep.sum())."""

    keep: Tensor
    counts: dict[str, Tensor]


@torch.no_grad()
def filter_candidates(
    candidates: Tensor, ids: Tensor, annotated: Tensor, vocab: Vocabulary, drop_true: bool = True
) -> Filtered:
    """Which candidates may serve as negatives. What is dropped never comes back, however few are left. `drop_true`: the last of the
    filters, which asks whether a sentence is probably true of the image.

    candidates   int64 [B, C, L], written from the captions `ids` [B, L]
    annotated    int64 [B, A, L'], the captions of the caption's image, its own among them; rows of pads where fewer
    """
    reason = drop_reasons(candidates, ids, annotated, vocab)
    if not drop_true:
        reason[reason == len(REASONS)] = 0
    counts = {"written": torch.tensor(reason.numel(), device=reason.device)}
    for number, name in enumerate(("not_annotated", "distinct", "false_of_image"), 1):
        counts[name] = ((reason == 0) | (reason > number)).sum()
    return Filtered(reason == 0, counts)


REASONS = ("annotated", "repeated", "true_of_image")  # numbered from 1, in the order in which the filters are asked


@torch.no_grad()
def drop_reasons(candidates: Tensor, ids: Tensor, annotated: Tensor, vocab: Vocabulary) -> Tensor:
    """Why each candidate is dropped: int64 [B, C], 0 = it is not, else 1 + the place of the first filter in REASONS that drops it.
    Arguments as of `filter_candidates`."""
    reason = torch.zeros(candidates.shape[:2], dtype=torch.int64, device=candidates.device)
    found = (
        _equals_annotated(candidates, annotated, vocab.pad),
        _repeats(candidates),
        _true_of_image(candidates, ids, annotated, vocab),
    )
    for number, dropped in reversed(list(enumerate(found, 1))):
        reason[dropped] = number
    return reason


def _equals_annotated(candidates: Tensor, annotated: Tensor, pad: int) -> Tensor:
    """(a) The candidate is, piece by piece, a caption annotated for the image: bool [B, C]."""
    width = max(candidates.shape[2], annotated.shape[2])
    candidates, annotated = _widen(candidates, width, pad), _widen(annotated, width, pad)
    return (candidates[:, :, None, :] == annotated[:, None, :, :]).all(dim=3).any(dim=2)


def _repeats(candidates: Tensor) -> Tensor:
    """(b) An earlier candidate of the same caption is the same sentence: bool [B, C]. Exact, by sorting the rows."""
    captions, per_caption, _ = candidates.shape
    device = candidates.device
    caption = torch.arange(captions, device=device).repeat_interleave(per_caption)
    rows = torch.cat([caption[:, None], candidates.flatten(0, 1)], dim=1)
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.arange(rows.shape[0], device=device)
    first = torch.full_like(order, rows.shape[0]).scatter_reduce(0, group, order, "amin")
    return (first[group] != order).view(captions, per_caption)


def _true_of_image(candidates: Tensor, ids: Tensor, annotated: Tensor, vocab: Vocabulary) -> Tensor:
    """(c) Every changed position holds a piece that the image's annotated captions use, so that the sentence is
    probably true: bool [B, C]. A candidate without a change counts as such."""
    used = torch.zeros(ids.shape[0], vocab.size, dtype=torch.bool, device=ids.device)
    used.scatter_(1, annotated.flatten(1), True)
    known = used.gather(1, candidates.flatten(1)).view_as(candidates)
    return (known | (candidates == ids[:, None, :])).all(dim=2)


def _widen(x: Tensor, width: int, pad: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]), value=pad)
