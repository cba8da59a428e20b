"""Word pieces -> GRU states, without a step over padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tagsds.data.ragged import Ragged
from tagsds.models.matchers.config import MatcherConfig


class TextEncoder(nn.Module):
    """Embedding, then a GRU: `states` float [N, L, E] with zeros behind each row (both directions averaged, where there are two),
    `last` float [N, E], the forward state at each row's last word."""

    def __init__(self, config: MatcherConfig, bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.word_size)
        self.rnn = nn.GRU(config.word_size, config.embed_size, batch_first=True, bidirectional=bidirectional)

    def states(self, captions: Ragged) -> Tensor:
        out, _ = pad_packed_sequence(self.rnn(self._packed(captions))[0], batch_first=True)
        if self.rnn.bidirectional:
            forward, backward = out.chunk(2, dim=-1)
            out = (forward + backward) / 2
        return out

    def last(self, captions: Ragged) -> Tensor:
        return last_state(self.rnn, self._packed(captions))

    def _packed(self, captions: Ragged) -> PackedSequence:
        words = self.embedding(captions.values)
        return packed_rows(Ragged(words, captions.lengths))


def packed_rows(rows: Ragged) -> PackedSequence:
    """What torch's recurrent layers take; the lengths are read on the CPU."""
    return pack_padded_sequence(rows.pad(0.0), rows.lengths.cpu(), batch_first=True, enforce_sorted=False)


def last_state(rnn: nn.GRU, rows: PackedSequence) -> Tensor:
    """The state of a one-directional GRU after each row's last item: [N, E]."""
    return rnn(rows)[1][-1]


def unit(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Rows of length one, float32 unless float64 (a half-precision norm would tie scores); a zero row stays zero."""
    x = x if x.dtype == torch.float64 else x.float()
    return x / x.norm(dim=-1, keepdim=True).clamp(min=eps)
