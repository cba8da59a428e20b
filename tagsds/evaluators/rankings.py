"""A sample of rankings and the distribution of scores, for the report.

Shapes: I = images, C = captions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank


def ranking_examples(
    scores: Tensor, image_of_caption: Tensor, bank: Bank, captions: Tensor, count: int = 8, top: int = 5
) -> list[dict[str, Any]]:
    """The `top` images of a few captions, taken at even distances from the split and not for their result.

    scores [I, C]; image_of_caption int64 [C]; captions int64 [C], numbers in the bank. Image i is the bank's image i.
    Ranks count from 1 and ties against the true image, as in `metrics.ranks`.
    """
    examples = []
    for column in torch.linspace(0, scores.shape[1] - 1, min(count, scores.shape[1])).long().tolist():
        row, image = scores[:, column], int(image_of_caption[column])
        order = torch.sort(row, descending=True, stable=True).indices[:top].tolist()
        others = torch.arange(len(row), device=row.device) != image
        examples.append(
            {
                "caption": bank.texts[int(captions[column])],
                "image": bank.keys[image],
                "rank": 1 + int(((row >= row[image]) & others).sum()),
                "score": float(row[image]),
                "top": [{"image": bank.keys[i], "score": float(row[i]), "true": i == image} for i in order],
            }
        )
    return examples


def score_histogram(
    scores: Tensor, image_of_caption: Tensor, bins: int = 60, unit: str = "ranking logit"
) -> dict[str, Any]:
    """Counts of the scores (in `unit`) of true and of all other pairs over the same `bins` (edges: bins + 1)."""
    low, high = float(scores.min()), float(scores.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    columns = torch.arange(scores.shape[1], device=scores.device)
    true = scores[image_of_caption.to(scores.device), columns].float()
    of_true = torch.histc(true, bins, low, high).long()
    of_all = torch.stack([torch.histc(part.float(), bins, low, high).long() for part in scores.split(256)]).sum(0)
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    other = (of_all - of_true).tolist()
    return {"unit": unit, "edges": edges.tolist(), "true": of_true.tolist(), "other": other}
