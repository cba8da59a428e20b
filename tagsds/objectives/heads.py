"""The pair encoder's heads at the start of a stage."""

from __future__ import annotations

from torch import nn

from tagsds.models.uniter import UniterModel
from tagsds.models.uniter.initialise import HEADS, initialise_heads


def begin_stage(model: UniterModel, heads: list[str]) -> list[str]:
    """Train `heads` and no other; begin those of them that are new. What was begun, for the log."""
    train_only(model, heads, (*HEADS, "probe") if model.config.probe_queries else HEADS)
    return initialise_heads(model, heads)


def train_only(model: nn.Module, heads: list[str], every_head: tuple[str, ...]) -> None:
    """Freeze the heads this stage leaves alone: an idle head would still be moved by momentum and weight decay."""
    shared = {id(p) for p in model.get_submodule("text_embedding").parameters()}
    for head in every_head:
        for parameter in model.get_submodule(head).parameters():
            if id(parameter) not in shared:
                parameter.requires_grad_(head in heads)
