"""Which regions of an image a word of a sentence stands for, read from the encoder's attention.

Shapes: N = word pieces with [CLS] and [SEP] and then regions, W = words, R = regions, L = layers, H = hidden width, A = heads.

A word w and a region r belong together as far as each looks at the other: the weight of the pair is a(w, r) * a(r, w), where
a(i, j) is the attention that i pays to j, averaged over the heads and added up over the layers (attention between words and
regions: UNITER, arXiv 1909.11740, 4.4).

Why not the optimal-transport plan of pre-training (tagsds/losses/itm.py): of the words that name some regions of an image and not
others, 88 % have their highest weight on a region that they name, 43 % by the plan over the states of the last layer, 45 % by
chance (TAGS-DC on the drawn world; on COCO boxes 91, 48 and 28 %). `python -m tests.bench.alignment` measures it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.words import Spelling
from tagsds.kernels.attention import Sequences
from tagsds.models.uniter import UniterModel
from tagsds.models.uniter.encoder import Layer
from tagsds.scoring.scorer import without_dropout


@torch.no_grad()
def align(model: UniterModel, ends: tuple[int, int], sentence: Spelling, images: Images) -> Tensor:
    """Share of each region in each word: float32 [W, R] on the images' device, rows sum to 1.

    ends     numbers of [CLS] and [SEP], which the encoder reads too and which have no row in the result
    images   a table of one image

    The weights of a word's pieces are added up. A row is relative: it says where a word points to and not how well it fits, so a
    word that nothing in the image answers points somewhere too.
    """
    device = images.regions.values.device
    pieces = torch.tensor([ends[0], *sentence.ids, ends[1]], dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    pair = Pairs(Ragged.from_rows([pieces]).to(device), images, zero, zero)
    with without_dropout(model):
        attention = attention_of(model, pair).mean(dim=1).sum(dim=0)
    words, regions = slice(1, len(pieces) - 1), slice(len(pieces), None)
    both = attention[words, regions] * attention[regions, words].T
    rows = torch.stack([both[word].sum(dim=0) for word in sentence.words()])
    return rows / rows.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()
def attention_of(model: UniterModel, pair: Pairs) -> Tensor:
    """Attention of one pair, alone in its tables: float32 [L, A, N, N], rows sum to 1. Memory grows with the square of N."""
    x, found = model.embed(pair.texts, pair.images).x, []
    sequence = Sequences.of(pair.lengths)
    for layer in model.layers:
        assert isinstance(layer, Layer)
        packed = layer.qkv(x)  # [N, 3H]: queries, keys, values
        query, key, _ = packed.float().view(len(x), 3, layer.heads, -1).permute(1, 2, 0, 3)  # each [A, N, H / A]
        found.append(torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, dim=-1))
        x = layer(x, packed, sequence, None, sequence)
    return torch.stack(found)
