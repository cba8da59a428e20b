"""VSRN's second task: describe the image from its region states.

Shapes: P captions, N regions of the largest image, L word pieces of the longest caption, E joint width, H caption_hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.data.ragged import Ragged, positions_of
from tagsds.models.matchers.attention import at_least_float32
from tagsds.models.matchers.config import VsrnConfig
from tagsds.models.matchers.text import WordEmbedding


class Captioner(nn.Module):
    """A GRU that attends to the regions at each word (additive attention, arXiv 1409.0473), taught with the true words.

        e_r = score . tanh(key(state_r) + query(h)),   context = sum_r softmax(e)_r state_r,   h <- GRU([word, context], h)

    h begins at zero; the word after is read from h.
    """

    def __init__(self, config: VsrnConfig) -> None:
        super().__init__()
        width = config.caption_hidden
        self.word = WordEmbedding(config.vocab_size, config.word_size)
        self.key = nn.Linear(config.embed_size, width)
        self.query = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)
        self.cell = nn.GRUCell(config.word_size + config.embed_size, width)
        self.next_word = nn.Linear(width, config.vocab_size)

    def forward(self, states: Ragged, captions: Ragged) -> Tensor:
        """-log p(caption | image), summed over the word pieces behind [CLS] and averaged over the captions: float32 [].

        states     Ragged float [*, E]: row p holds the region states of the image that caption p describes
        captions   Ragged int64 [P], [CLS] .. [SEP]
        """
        keys = Ragged(self.key(states.values), states.lengths).pad(0)  # [P, N, H], once for all words
        values = states.pad(0)
        regions = torch.arange(values.shape[1], device=values.device) < states.lengths[:, None]
        words = Ragged(self.word(captions.values), captions.lengths).pad(0)  # [P, L, word_size]
        hidden = words.new_zeros(len(captions), self.query.in_features)
        steps = []
        for word in words[:, :-1].unbind(dim=1):
            scores = at_least_float32(self.score(torch.tanh(keys + self.query(hidden)[:, None])).squeeze(-1))
            weights = scores.masked_fill(~regions, torch.finfo(scores.dtype).min).softmax(dim=-1)
            context = (weights.to(values.dtype)[:, None] @ values).squeeze(1)
            hidden = self.cell(torch.cat([word, context], dim=-1), hidden)
            steps.append(hidden)
        # the vocabulary is wide: logits only where a word piece follows, each step's padding dropped first
        told = Ragged.from_padded(torch.stack(steps, dim=1), captions.lengths - 1).values
        target = captions.values[positions_of(captions.offsets[:-1] + 1, captions.lengths - 1)]
        logits = at_least_float32(self.next_word(told))
        return F.cross_entropy(logits, target, reduction="sum") / len(captions)
