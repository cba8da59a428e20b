"""VSRN's second task: describe the image from its region states, with the captioner that its code trains (AOQ saves it).

Shapes: P captions, N regions of the largest image, L steps of the longest caption, E joint width, H caption_hidden,
W caption_word_size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.data.ragged import Ragged
from tagsds.models.matchers.attention import at_least_float32
from tagsds.models.matchers.text import run_gru
from tagsds.models.matchers.vsrn.config import VsrnConfig

PAD = 0  # the word behind the end of a caption: [PAD], <pad>


class XavierLinear(nn.Linear):
    """The weight begins Xavier-normal, the bias as torch's."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.xavier_normal_(self.weight)


class PairLinear(nn.Linear):
    """A linear layer on [a, b], side by side: the share of `a` with the bias, and that of `b`, which are to be added up. So the
    share of what stays the same is computed once."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, width)

    def forward(self, x: Tensor, second: bool) -> Tensor:  # type: ignore[override]
        first_weight, second_weight = self.weight.chunk(2, dim=1)
        return F.linear(x, second_weight) if second else F.linear(x, first_weight, self.bias)


class Captioner(nn.Module):
    """Sequence to sequence with attention: a GRU over the regions, in their order; a GRU over the words that begins at its last
    state and attends to its states at each word (additive attention, arXiv 1409.0473). Taught with the true words.

        x_1 .. x_N = GRU(dropout(region(state_r)))         h_0 = x_N
        e_r = score . tanh(attention([x_r, h]))            context = sum_r softmax(e)_r x_r
        h <- GRU(dropout([word, context]), h)              log p(next word) = log softmax(next_word(h))

    config.caption_dropout is the one dropout (0.2 as published; the released options also name one of 0.5 inside the GRUs, which
    torch applies between layers and so never in a GRU of one).
    """

    def __init__(self, config: VsrnConfig) -> None:
        super().__init__()
        width = config.caption_hidden
        self.most = config.caption_pieces
        self.dropout = nn.Dropout(config.caption_dropout)
        self.region = XavierLinear(config.embed_size, width)
        self.region_gru = nn.GRU(width, width, batch_first=True)
        self.word = nn.Embedding(config.vocab_size, config.caption_word_size)
        self.attention = PairLinear(width)
        self.score = nn.Linear(width, 1, bias=False)
        self.cell = nn.GRUCell(config.caption_word_size + width, width)
        self.next_word = XavierLinear(width, config.vocab_size)

    def forward(self, states: Ragged, captions: Ragged) -> Tensor:
        """-log p(caption | image), summed over the targets of a caption and averaged over the captions: float32 [].

        states     Ragged float [*, E]: row p holds the region states of the image that caption p describes
        captions   Ragged int64 [P], [CLS] .. [SEP]
        """
        words, targets, steps = teach(captions, self.most)
        regions = Ragged(self.dropout(self.region(states.values)), states.lengths)
        values, last = run_gru(self.region_gru, regions)  # [P, N, H], zero behind each row's length
        keys = self.attention(values, second=False)
        real = torch.arange(values.shape[1], device=values.device) < states.lengths[:, None]
        hidden, states_of_words = last[0], []
        for word in self.word(words).unbind(dim=1):
            scores = self.score(torch.tanh(keys + self.attention(hidden, second=True)[:, None])).squeeze(-1)
            scores = at_least_float32(scores).masked_fill(~real, torch.finfo(at_least_float32(scores).dtype).min)
            context = (scores.softmax(dim=-1).to(values.dtype)[:, None] @ values).squeeze(1)
            hidden = self.cell(self.dropout(torch.cat([word, context], dim=-1)), hidden)
            states_of_words.append(hidden)
        # the vocabulary is wide: logits only where a target is, each row's padding dropped first
        logits = at_least_float32(self.next_word(Ragged.from_padded(torch.stack(states_of_words, dim=1), steps).values))
        return F.cross_entropy(logits, Ragged.from_padded(targets, steps).values, reduction="sum") / len(captions)


def teach(captions: Ragged, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words that are read [P, L], the words to predict after them [P, L], and how many of each row count (int64 [P], 1 .. L).

    As in the released code: a caption of more than `most` pieces is cut to so many, of which the last is its end; and where there
    is room, one PAD is predicted behind the end.
    """
    ends = captions.values[captions.offsets[1:] - 1]
    pieces = captions.pad(PAD)[:, :most]
    if pieces.shape[1] == most:
        pieces[:, -1] = torch.where(captions.lengths > most, ends, pieces[:, -1])
    steps = captions.lengths.clamp(max=most - 1)
    width = int(steps.max())
    return pieces[:, :width], F.pad(pieces, (0, 1), value=PAD)[:, 1 : width + 1], steps
