"""Kind `detector`: the queries of a DETR-like detector are the regions, the most confident ones kept.

A head with one class more than the labels ends in a softmax whose last class is "no object" (DETR, YOLOS, Table Transformer);
one with as many classes as labels ends in sigmoids (Conditional and Deformable DETR, RT-DETR).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tagsds.errors import UserError
from tagsds.vision.checkpoint import Checkpoint
from tagsds.vision.confidence import most_confident
from tagsds.vision.regions import Pixels, Regions


class DetectorExtractor:
    """Last hidden states of the queries above `threshold`, at least `fewest` of them and at most `most`."""

    def __init__(
        self, checkpoint: Checkpoint, model: PreTrainedModel, processor: Any, threshold: float, fewest: int, most: int
    ) -> None:
        self.folder, self.model = checkpoint.folder, model
        self.threshold, self.fewest, self.most = threshold, fewest, most
        self.takes_mask = "pixel_mask" in inspect.signature(model.forward).parameters
        config: Any = model.config
        if sorted(config.id2label) != list(range(config.num_labels)):
            raise UserError(f"{self.folder / 'config.json'}: id2label does not number its classes from 0; correct it.")
        self.class_names = [str(config.id2label[i]) for i in range(config.num_labels)]
        self.feature_dim = int(config.hidden_size)
        if getattr(processor, "do_center_crop", None):
            raise UserError(
                f"{checkpoint.processor_file} crops pictures, so that a detector's boxes are not fractions of the picture; "
                "set do_center_crop to false."
            )

    def check(self, pixels: Pixels) -> str | None:
        """Every size, but no padding: a model trained on padded pictures gives boxes as fractions of the padding."""
        if pixels.mask is not None and not bool(pixels.mask.all()):
            return "pads it, so that boxes may be fractions of the padding and not of the picture (set do_pad to false)"
        return None

    def __call__(self, batch: list[Pixels], values: Tensor, mask: Tensor | None) -> list[Regions]:
        """See regions.Extractor."""
        output = self.model(pixel_values=values, **({"pixel_mask": mask} if self.takes_mask and mask is not None else {}))
        logits = output.logits.float()  # [B, Q, C] or [B, Q, C + 1]
        hidden = output.last_hidden_state[:, -logits.shape[1] :].float()  # YOLOS has its queries after [CLS] and the patches
        confidence, classes = self.confidence(logits)
        boxes = corners(output.pred_boxes.float())
        arrays = [tensor.cpu().numpy() for tensor in (hidden, boxes, confidence, classes)]
        return [self._keep(*(array[i] for array in arrays)) for i in range(len(batch))]

    def confidence(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits [B, Q, C or C + 1] -> probability of the best class [B, Q], and classes [B, Q, C] whose rows sum to 1: the
        softmax without "no object", or the sigmoids divided by their sum."""
        count = len(self.class_names)
        if logits.shape[-1] == count + 1:
            return logits.softmax(-1)[..., :-1].amax(-1), logits[..., :-1].softmax(-1)
        if logits.shape[-1] == count:
            return logits.sigmoid().amax(-1), functional.logsigmoid(logits).softmax(-1)
        raise UserError(
            f"{self.folder}: the model's head has {logits.shape[-1]} classes, config.json names {count}; "
            "copy config.json and the weights again."
        )

    def _keep(self, features: Any, boxes: Any, confidence: Any, classes: Any) -> Regions:
        keep = most_confident(confidence, self.threshold, self.fewest, self.most)
        return Regions(features[keep], boxes[keep], confidence[keep], classes[keep])


def corners(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height [..., 4] -> x1, y1, x2, y2, all fractions of the picture, clipped to 0..1."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1).clamp(0.0, 1.0)
