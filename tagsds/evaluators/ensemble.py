"""Ensembles: the average of several models' scores, as the published pairs of VSRN and BFAN are made (arXiv 1909.02701,
1909.11416). One model and an average of two are different things, so their figures stand apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tagsds.errors import UserError


def average(members: Sequence[Tensor], logits: bool) -> Tensor:
    """Mean of the members' scores, entry by entry: float64, shaped as each of them.

    Similarities are averaged as they are. Ranking logits have no common scale, so their sigmoids are averaged; in float64,
    since in float32 the sigmoids of large logits fall together, and every tie counts against us.
    """
    total = torch.zeros_like(members[0], dtype=torch.float64)
    for scores in members:
        total += scores.double().sigmoid() if logits else scores.double()
    return total / len(members)


def member_names(folders: Sequence[Path]) -> list[str]:
    """A name for each checkpoint folder: of the run it lies in, with as many parents in front as tell them apart."""
    paths = [folder.resolve() for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--ensemble names {path} twice (--checkpoint counts too); give each model once.")
    parts = [(path.parent if path.name == "export" else path).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # a run and the 'export' inside it
