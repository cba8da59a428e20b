"""Captions for the matchers: word embedding and GRU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tagsds.data.ragged import Ragged
from tagsds.models.matchers.config import MatcherConfig


class WordEmbedding(nn.Embedding):
    """Begins uniform in (-0.1, 0.1), as in VSE++, from which all three matchers descend."""

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -0.1, 0.1)


def run_gru(gru: nn.GRU, rows: Ragged) -> tuple[Tensor, Tensor]:
    """A GRU over rows of uneven length (each >= 1): all states [N, L, directions * E], zero behind each row's length, and the
    last states [directions, N, E] (of the backward direction: those at the row's first element)."""
    packed = pack_padded_sequence(rows.pad(0), rows.lengths.cpu(), batch_first=True, enforce_sorted=False)
    states, last = gru(packed)
    return pad_packed_sequence(states, batch_first=True)[0], last


class CaptionEncoder(nn.Module):
    """Ragged word pieces -> states of a GRU of one direction, or of two whose mean is taken."""

    def __init__(self, config: MatcherConfig, bidirectional: bool) -> None:
        super().__init__()
        self.word = WordEmbedding(config.vocab_size, config.word_size)
        self.gru = nn.GRU(config.word_size, config.embed_size, batch_first=True, bidirectional=bidirectional)

    def forward(self, captions: Ragged) -> tuple[Tensor, Tensor]:
        """States of the words [C, L, E], zero behind each caption's length, and at the ends of the sentence [C, E]."""
        states, last = run_gru(self.gru, Ragged(self.word(captions.values), captions.lengths))
        if self.gru.bidirectional:
            states = states.unflatten(-1, (2, -1)).mean(dim=-2)
        return states, last.mean(dim=0)
