"""VSRN's captioning head: what the region states hold must suffice to write the caption (arXiv 1909.02701)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.data.ragged import Ragged
from tagsds.models.matchers.config import VsrnConfig


class Captioner(nn.Module):
    """A GRU that attends to the region states at each word: additive attention v . tanh(W s + U h), input [word; context].

    The published head decodes from a further recurrent encoder of the states; here attention reads the states themselves.
    """

    def __init__(self, config: VsrnConfig) -> None:
        super().__init__()
        hidden, width = config.caption_hidden, config.embed_size
        self.embedding = nn.Embedding(config.vocab_size, config.word_size)
        self.start = nn.Linear(width, hidden)
        self.key, self.query = nn.Linear(width, hidden), nn.Linear(hidden, hidden, bias=False)
        self.energy = nn.Linear(hidden, 1, bias=False)
        self.cell = nn.GRUCell(config.word_size + width, hidden)
        self.word = nn.Linear(hidden, config.vocab_size)

    def forward(self, states: Ragged, captions: Ragged) -> Tensor:
        """states Ragged [*, E], captions Ragged int64, row by row: negative log-likelihood of the words behind [CLS] up to [SEP],
        given those before, summed over a caption and averaged over the captions: float32 []."""
        memory, words = states.pad(0.0), captions.pad(0)
        absent = torch.arange(memory.shape[1], device=memory.device) >= states.lengths[:, None]
        keys, embedded = self.key(memory), self.embedding(words)
        hidden = torch.tanh(self.start(memory.sum(dim=1) / states.lengths[:, None]))
        outputs = []
        for position in range(words.shape[1] - 1):
            energy = self.energy(torch.tanh(keys + self.query(hidden)[:, None]))[..., 0]
            attention = torch.softmax(energy.masked_fill(absent, -torch.inf), dim=1)
            context = (attention[:, None] @ memory)[:, 0]
            hidden = self.cell(torch.cat([embedded[:, position], context], dim=1), hidden)
            outputs.append(hidden)
        steps = captions.lengths - 1
        written = Ragged.from_padded(torch.stack(outputs, dim=1), steps).values
        logits = self.word(written)  # at real words only
        logits = logits if logits.dtype == torch.float64 else logits.float()
        target = Ragged.from_padded(words[:, 1:], steps).values
        return F.cross_entropy(logits, target, reduction="sum") / len(captions)
