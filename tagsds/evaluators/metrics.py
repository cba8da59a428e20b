"""Recall at K, median rank and the accuracy on edited captions: pure functions of a score matrix.

Shapes: I = images, C = captions. scores[i, c] is the score of image i with caption c; image_of_caption int64 [C].
Text retrieval: an image is the query and its best own caption counts. Image retrieval: a caption is the query.

Ties count against us: a distractor with the same score ranks above the true item. Any other rule pays for saturated
scores (a constant matrix would reach 100 % where ties are broken in our favour, and an arbitrary figure where argsort
breaks them); the released code of TAGS and AOQ ranked fp16 scores this way (docs/faults.md, 7a).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from tagsds.errors import UserError

ROWS = 256  # images compared at a time; bounds the memory of the comparisons to ROWS x C


@dataclass(frozen=True)
class Recalls:
    """Percentages 0..100; `rsum` is the sum of the six; medians are ranks counted from 1.

    further   {"text_rN", "image_rN": percentage} of other N
    """

    text_r1: float
    text_r5: float
    text_r10: float
    image_r1: float
    image_r5: float
    image_r10: float
    rsum: float
    text_median: float
    image_median: float
    images: int
    captions: int
    further: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, float | int]:
        """The figures by name, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "further"} | self.further


def ranks(scores: Tensor, image_of_caption: Tensor) -> tuple[Tensor, Tensor]:
    """scores [I, C], image_of_caption int64 [C] -> text ranks int64 [I], image ranks int64 [C], both counted from 0.

    Text rank of an image: the captions of *other* images that score at least as high as its best own caption.
    Image rank of a caption: the other images that score at least as high as its own. No sorting takes place.
    """
    check_scores(scores, image_of_caption)
    image_of_caption = image_of_caption.to(scores.device)
    captions = torch.arange(scores.shape[1], device=scores.device)
    true = scores[image_of_caption, captions]
    text_ranks = []
    image_ranks = torch.zeros_like(captions)
    for start in range(0, scores.shape[0], ROWS):
        rows = scores[start : start + ROWS]
        image = torch.arange(start, start + len(rows), device=scores.device)
        own = image_of_caption == image[:, None]
        best = rows.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        text_ranks.append(((rows >= best) & ~own).sum(1))
        image_ranks += ((rows >= true) & ~own).sum(0)
    return torch.cat(text_ranks), image_ranks


def recalls(scores: Tensor, image_of_caption: Tensor, at: Sequence[int] = ()) -> Recalls:
    """All figures of a score matrix [I, C]; `at`: N of further R@N than 1, 5 and 10."""
    return recalls_of_ranks(*ranks(scores, image_of_caption), at)


def recalls_of_ranks(text_ranks: Tensor, image_ranks: Tensor, at: Sequence[int] = ()) -> Recalls:
    """Ranks counted from 0, int64 [I] and [C]."""
    t1, t5, t10 = (recall_at(text_ranks, k) for k in (1, 5, 10))
    i1, i5, i10 = (recall_at(image_ranks, k) for k in (1, 5, 10))
    rsum = t1 + t5 + t10 + i1 + i5 + i10
    medians = median(text_ranks) + 1, median(image_ranks) + 1
    sides = ("text", text_ranks), ("image", image_ranks)
    further = {f"{side}_r{n}": recall_at(found, n) for side, found in sides for n in sorted({*at} - {1, 5, 10})}
    return Recalls(t1, t5, t10, i1, i5, i10, rsum, *medians, text_ranks.numel(), image_ranks.numel(), further)


def recall_at(ranks: Tensor, k: int) -> float:
    """Percentage of ranks (counted from 0) below k."""
    return 100.0 * int((ranks < k).sum()) / ranks.numel()


def median(values: Tensor) -> float:
    """The middle value, or the mean of the middle two (torch.median would take the lower)."""
    ordered = values.double().sort().values
    count = ordered.numel()
    return float(ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def coco_folds(
    scores: Tensor, image_of_caption: Tensor, folds: int = 5, images_per_fold: int = 1000, at: Sequence[int] = ()
) -> Recalls:
    """COCO's "1K" figures: mean over consecutive folds of images, each with its own captions only.

    Every field is the mean of the folds' (rsum and medians too); images and captions are those of one fold.
    """
    if folds * images_per_fold != scores.shape[0]:
        raise UserError(
            f"{folds} folds of {images_per_fold} images need {folds * images_per_fold} images, the scores have "
            f"{scores.shape[0]}; omit coco-folds for this split."
        )
    check_scores(scores, image_of_caption)
    parts = []
    for fold in range(folds):
        first = fold * images_per_fold
        inside = (image_of_caption >= first) & (image_of_caption < first + images_per_fold)
        captions = inside.nonzero().squeeze(1)
        part = scores[first : first + images_per_fold].index_select(1, captions.to(scores.device))
        parts.append(recalls(part, image_of_caption[captions] - first, at))
    return mean_recalls(parts)


def mean_recalls(parts: Iterable[Recalls]) -> Recalls:
    """Field by field; the counts are rounded."""
    parts = list(parts)
    mean: dict[str, Any] = {name: sum(part.as_dict()[name] for part in parts) / len(parts) for name in parts[0].as_dict()}
    further = {name: mean.pop(name) for name in parts[0].further}
    mean |= {name: round(mean[name]) for name in ("images", "captions")}
    return Recalls(**mean, further=further)


def pair_accuracy(true_scores: Tensor, false_scores: Tensor) -> float:
    """Percentage of pairs whose true caption scores strictly above the false one; both [N]. A tie is an error."""
    if true_scores.shape != false_scores.shape or not true_scores.numel():
        raise ValueError(f"two equal, non-empty rows are wanted, not {true_scores.shape} and {false_scores.shape}")
    if bool(torch.isnan(true_scores).any() | torch.isnan(false_scores).any()):
        raise UserError("a score of an edited caption is NaN; the checkpoint is broken, or use --dtype fp32.")
    return 100.0 * int((true_scores > false_scores).sum()) / true_scores.numel()


def check_scores(scores: Tensor, image_of_caption: Tensor) -> None:
    """UserError for NaN (every comparison with it is false, which would pass for rank 0); ValueError for shapes."""
    images, captions = scores.shape
    if image_of_caption.shape != (captions,) or not captions:
        raise ValueError(f"scores {tuple(scores.shape)} with image_of_caption {tuple(image_of_caption.shape)}")
    counts = torch.bincount(image_of_caption, minlength=images)
    if len(counts) > images or int(counts.min()) == 0:
        raise ValueError(f"image_of_caption names images other than 0..{images - 1}, or leaves one without a caption")
    for row, values in enumerate(scores.split(ROWS)):
        bad = torch.isnan(values).nonzero()
        if len(bad):
            image, caption = int(bad[0, 0]) + row * ROWS, int(bad[0, 1])
            raise UserError(
                f"the score of image {image} with caption {caption} is NaN; the checkpoint is broken "
                "(look at its last losses), or use --dtype fp32."
            )


def wilson(percent: float, count: int) -> tuple[float, float]:
    """95 % interval of a proportion in per cent, after Wilson (1927): holds near 0 and 100 too."""
    z, p = 1.96, percent / 100
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return 100 * (middle - half), 100 * (middle + half)
