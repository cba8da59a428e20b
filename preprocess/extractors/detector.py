"""Detected objects as regions: the decoder's states of the queries that a DETR-type detector is sure of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from preprocess.extractors.vision import Vision
from tagsds.errors import UserError


@dataclass
class Detections:
    """One picture's kept queries, the most confident first: regions [n, D], boxes [n, 4] (x1, y1, x2, y2 as fractions), scores [n],
    classes [n, C] whose rows sum to 1."""

    regions: NDArray[np.float32]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.float32]


def class_names(vision: Vision) -> list[str]:
    names = vision.config.id2label
    return [str(names.get(i, f"class {i}")) for i in range(len(names))]


def width_of(vision: Vision) -> int:
    return int(getattr(vision.config, "d_model", None) or vision.config.hidden_size)


def probabilities(logits: torch.Tensor, labels: int, name: str) -> torch.Tensor:
    """Probability of each class [..., C]: a softmax whose last class is "no object" (DETR, YOLOS), or a sigmoid a class (RT-DETR,
    Deformable and Conditional DETR)."""
    if logits.shape[-1] == labels + 1:
        return logits.softmax(dim=-1)[..., :-1]
    if logits.shape[-1] == labels:
        return logits.sigmoid()
    raise UserError(f"--model {name} gives {logits.shape[-1]} logits a query for {labels} classes; use a DETR-type detector.")


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Centre and size -> corners, within the picture: float [..., 4], fractions."""
    x, y, w, h = boxes.unbind(dim=-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1).clamp(0, 1)


@torch.no_grad()
def detect(vision: Vision, pixels: torch.Tensor, threshold: float, fewest: int, most: int) -> list[Detections]:
    """Pictures of one size, float [B, 3, h, w]. Kept: confidence above `threshold`, but at least `fewest` and at most `most`."""
    with torch.autocast(vision.device.type, dtype=torch.bfloat16, enabled=vision.dtype != torch.float32):
        out = vision.model(pixel_values=pixels.to(vision.device))
    queries = out.logits.shape[1]
    states = out.last_hidden_state[:, -queries:].float().cpu()  # YOLOS has the patches before its queries
    chances = probabilities(out.logits.float().cpu(), len(vision.config.id2label), vision.name)
    boxes = corners(out.pred_boxes.float().cpu())
    found = []
    for state, chance, box in zip(states, chances, boxes):
        confidence = chance.max(dim=-1).values
        order = confidence.argsort(descending=True, stable=True)
        keep = order[: min(max(int((confidence > threshold).sum()), fewest), most)]
        classes = chance[keep] / chance[keep].sum(dim=-1, keepdim=True).clamp(min=1e-12)
        found.append(Detections(state[keep].numpy(), box[keep].numpy(), confidence[keep].numpy(), classes.numpy()))
    return found
