"""Activation checkpointing of the packed encoder: the same numbers to the bit, from less memory."""

from __future__ import annotations

import pytest
import torch

from tagsds.config import load_config
from tagsds.errors import UserError
from tagsds.kernels.rows import round_rows
from tests.live_memory import LiveBytes
from tests.models.plain_uniter import RAGGED, model_of, pairs_of

CLS = torch.tensor([0, 7, 20, 30, 33, 40, 51])
DROPOUT = dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)


def gradients_of(recompute: bool, keep: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """States, all gradients, and the next random number after the backward pass."""
    model, pairs = model_of(num_hidden_layers=4, **DROPOUT).train(), pairs_of(**RAGGED, masked=True)
    model.recomputes_layers = recompute
    torch.manual_seed(5)
    states = model(pairs, keep)
    weight = torch.linspace(-1, 1, states.numel()).view_as(states)
    (states * weight).sum().backward()
    return states.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, torch.rand(3)


@pytest.mark.parametrize("keep", [None, CLS, torch.empty(0, dtype=torch.int64)], ids=["all", "cls", "none"])
def test_gradients_are_the_same_to_the_bit_with_dropout(keep: torch.Tensor | None) -> None:
    plain, recomputed = gradients_of(False, keep), gradients_of(True, keep)
    assert torch.equal(plain[0], recomputed[0]) and torch.equal(plain[2], recomputed[2])
    assert plain[1].keys() == recomputed[1].keys() and len(plain[1]) > 4 * 12
    assert all(torch.equal(plain[1][name], recomputed[1][name]) for name in plain[1])


def held_by_forward(recompute: bool, layers: int) -> int:
    """Bytes alive after the forward, which backward needs."""
    sizes = dict(hidden_size=64, num_attention_heads=4, intermediate_size=256, **DROPOUT)
    model, pairs = model_of(num_hidden_layers=layers, **sizes).train(), pairs_of(**RAGGED)
    model.recomputes_layers = recompute
    with LiveBytes() as memory:
        memory.forget(*model.parameters())
        states = model(pairs)
        held = memory.live
    assert states.requires_grad
    return held


def test_a_layer_then_keeps_what_enters_it_alone() -> None:
    tokens, width = 59, 64
    of_a_layer = (held_by_forward(True, 8) - held_by_forward(True, 4)) / 4
    state = round_rows(tokens) * width * 4  # fp32
    assert of_a_layer == state
    plain = (held_by_forward(False, 8) - held_by_forward(False, 4)) / 4
    assert plain > 12 * state


def test_nothing_is_recomputed_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = model_of(), pairs_of(**RAGGED)
    expected = model(pairs)
    model.recomputes_layers = True
    monkeypatch.setattr("tagsds.models.uniter.encoder.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(model(pairs), expected)


def test_a_matcher_has_no_layers_to_recompute() -> None:
    with pytest.raises(UserError, match=r"batch\.activation_checkpointing is of the encoder's layers"):
        load_config("vsrn-coco", ["batch.activation_checkpointing=true"])
    assert load_config("tags-base-coco", ["batch.activation_checkpointing=true"]).batch.activation_checkpointing
