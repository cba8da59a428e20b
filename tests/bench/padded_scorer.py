"""Scoring with padding, by PyTorch's own products and norms: the package does without padding, and running both shows what that
saves."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.pairs import Pairs
from tagsds.models import UniterModel
from tagsds.scoring.scorer import Scorer, without_dropout
from tests.bench.plain_step import linear, norm


class PaddedScorer(Scorer):
    """Tables embedded once as ever, but each chunk padded to its longest pair, in the order of the pairs."""

    @torch.no_grad()
    def __call__(self, pairs: Pairs, progress: bool = False) -> Tensor:
        scores = []
        with without_dropout(self.model):
            table = self.model.embed(pairs.texts, pairs.images)
            per_chunk = max(1, self.tokens_of_chunk(pairs.lengths.device) // int(pairs.lengths.max()))
            for index in torch.arange(len(pairs), device=pairs.text_of_pair.device).split(per_chunk):
                text, image = pairs.text_of_pair[index], pairs.image_of_pair[index]
                n, lengths = pairs.texts.lengths[text][:, None], pairs.lengths[index][:, None]
                column = torch.arange(int(lengths.max()), device=index.device)
                at_word = pairs.texts.offsets[text][:, None] + column
                at_region = pairs.images.regions.offsets[image][:, None] + table.image_start + column - n
                gather = torch.where(column < n, at_word, at_region).clamp(max=len(table.x) - 1)
                states = cls_states(self.model, table.x[gather], table.qkv[gather], (column < lengths)[:, None, None, :])
                scores.append(self.model.score(states))
        return torch.cat(scores)


def cls_states(model: UniterModel, x: Tensor, qkv: Tensor, mask: Tensor) -> Tensor:
    """States of [CLS] from padded x [P, L, H] and the first layer's projections; the last layer is left short."""
    first, last = model.layers[0], model.layers[-1]
    for layer in model.layers:
        known = qkv if layer is first else linear(layer.qkv, x)
        query, key, value = (p.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for p in known.chunk(3, dim=-1))
        if layer is last:
            query, x = query[:, :, :1], x[:, :1]
        context = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = norm(layer.attention_norm, x + linear(layer.attention_out, context.transpose(1, 2).flatten(2)))
        x = norm(layer.norm, x + linear(layer.contract, torch.nn.functional.gelu(linear(layer.expand, x))))
    return x[:, 0]
