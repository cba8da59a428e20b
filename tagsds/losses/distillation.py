"""Distillation of an ensemble into one encoder: over a true pair and its hard negatives, the softmax of the student's scores
follows the mean of the teachers' (Hinton et al., arXiv 1503.02531; over lists of candidates, Cao et al., ListNet, ICML 2007).

Shapes: N = teachers, B = true pairs, K = hard negatives of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.settings import above_zero, not_negative


@dataclass
class DistilConfig:
    """Other encoders whose scores of the same pairs are a target: group `distil` of a recipe."""

    teachers: list[str] = field(default_factory=list)
    """runs or Hugging Face folders of encoders with the corpus' tokenizer and features; empty: none. Encoders that began from
    different pre-trainings err in different places, and their mean is worth more than one of them. Their weights lie in each rank's
    memory"""
    weight: float = 1.0
    """of the loss, the mean of both directions"""
    offline: int = 0
    """offline candidates of each direction that join the lists, drawn unscored from ranks offline.first to offline.last of
    offline.candidates. A margin pushes away those that are true of the image as well; a teacher's softmax does not"""
    synthetic: float = 0.0
    """weight of the same loss over a true pair and the hardest sentences that are written for it. Teachers that were trained with
    loss.syn know which of them are wrong, and how surely"""
    temperature: float = 1.0
    """that scores are divided by before the softmax, of teachers and student"""

    def check(self, group: str) -> None:
        above_zero(self, group, "temperature")
        not_negative(self, group, "weight", "offline", "synthetic")


def distillation(student: Tensor, teachers: Tensor, valid: Tensor, temperature: float = 1.0) -> Tensor:
    """mean over the pairs of t^2 KL( mean over the teachers of softmax(z_teacher / t) || softmax(z / t) ): float32 [].

    student    float [B, 1 + K], ranking logits of the true pair and of its hard negatives
    teachers   float [N, B, 1 + K], theirs of the same pairs; no gradient
    valid      bool [B, 1 + K]: slots that hold a pair; the others are left out, whatever they hold. The first is always one.

    The factor t^2 keeps the gradient's size when the temperature is changed, as in the source.
    """
    student = (student.float() / temperature).masked_fill(~valid, -torch.inf).log_softmax(dim=-1)
    target = (teachers.detach().float() / temperature).masked_fill(~valid, -torch.inf).softmax(dim=-1).mean(dim=0)
    student = student.masked_fill(~valid, 0.0)  # where the target is zero: nothing, and not 0 * inf
    return F.kl_div(student, target, reduction="batchmean") * temperature**2
