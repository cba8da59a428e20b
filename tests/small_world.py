"""What several tests need beside the `world` fixture: a model of a few weights, and the literal forward of one pair."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.formats.manifest import Manifest
from tagsds.models import UniterConfig, UniterModel


def model_of(manifest: Manifest, seed: int = 0, **changes) -> UniterModel:
    """Two layers of width 16, no dropout, training mode; weights so large that scores and logits lie far apart."""
    sizes = dict(
        vocab_size=manifest.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=40,
        region_dim=manifest.feature_dim,
        num_region_classes=manifest.num_classes,
    )
    torch.manual_seed(seed)
    model = UniterModel(UniterConfig(**(sizes | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    return model.train()


def one_pair(bank: Bank, ids: Tensor, image: int) -> Pairs:
    """A text (int64 [L], [CLS] and [SEP] included) held against one image, alone in its tables."""
    zero = torch.zeros(1, dtype=torch.int64)
    return Pairs(Ragged(ids, torch.tensor([len(ids)])), bank.image_table(torch.tensor([image])), zero, zero)


def states_of(model: UniterModel, bank: Bank, ids: Tensor, image: int) -> Tensor:
    """All states of the pair, [L + regions, H]: one sequence, nothing shared, nothing left out."""
    return model(one_pair(bank, ids, image))


def caption_ids(bank: Bank, caption: int) -> Tensor:
    return bank.tokens[caption].long()


def score_of(model: UniterModel, bank: Bank, ids: Tensor, image: int) -> Tensor:
    """Ranking logit of one pair, []."""
    return model.score(states_of(model, bank, ids, image)[:1])[0]
