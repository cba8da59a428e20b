"""Which words and regions are hidden (TAGS-DC, arXiv 2111.03349; UNITER, arXiv 1909.11740).

Shapes: B = captions (or images), S = spans of a caption, L = padded length, M = maskings of one caption.
Captions are dense int64 [B, L] padded with `vocab.pad`; their `lengths` int64 [B] count [CLS] and [SEP]. The special
pieces at 0 and length - 1 and the padding are never chosen; a caption without a word piece (length 2) yields nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary


def span_members(spans: Ragged, length: int) -> Tensor:
    """Which positions each span holds: bool [B, S, length].

    `spans` int [*, 2], a row a caption: (span number from 0, position). S = most spans of a caption, at least 1.
    Positions at or behind `length` (a caption cut short) are dropped.
    """
    owner = torch.repeat_interleave(torch.arange(len(spans), device=spans.lengths.device), spans.lengths)
    number, position = spans.values[:, 0].long(), spans.values[:, 1].long()
    most = int(number.max()) + 1 if number.numel() else 1
    members = torch.zeros(len(spans), most, length, dtype=torch.bool, device=spans.values.device)
    inside = position < length
    members[owner[inside], number[inside], position[inside]] = True
    return members


def choose_by_structure(
    members: Tensor, lengths: Tensor, maskings: int, generator: torch.Generator, probability: float = 0.15
) -> Tensor:
    """M maskings of each caption along its objects, attributes and relations: members bool [B, S, L] -> bool [B, M, L].

    A position's probability is `probability` / (number of spans that hold it), a span's the mean over its positions; a
    chosen span is chosen whole. If none is, one existing span is forced, each as likely as another. A caption without
    spans falls back to single pieces.

    The method visits the spans in random order. The draws are independent of one another and the result is the union
    of the chosen spans, so the order changes nothing, provided that each position of the union is corrupted (80/10/10)
    once, as `corrupt` does.
    """
    words = _words(lengths, members.shape[2])
    members = members & words[:, None, :]
    size = members.sum(dim=2)  # [B, S]
    of_position = probability / members.sum(dim=1).clamp(min=1)  # [B, L]
    of_span = (members * of_position[:, None, :]).sum(dim=2) / size.clamp(min=1)  # 0 where there is no span

    shape = (members.shape[0], maskings, members.shape[1])
    drawn = _uniform(shape, generator) < of_span[:, None, :]
    exists = (size > 0)[:, None, :]
    lot = _uniform(shape, generator).masked_fill(~exists, -1.0)
    forced = (lot == lot.amax(dim=2, keepdim=True)) & exists & ~drawn.any(dim=2, keepdim=True)
    by_span = torch.bmm((drawn | forced).float(), members.float()) > 0  # [B, M, L]

    by_piece = _choose(words[:, None, :].expand(-1, maskings, -1), generator, probability)
    return torch.where(exists.any(dim=2, keepdim=True), by_span, by_piece)


def choose_pieces(lengths: Tensor, width: int, generator: torch.Generator, probability: float = 0.15) -> Tensor:
    """Plain MLM: each word piece with `probability`, at least one a caption: lengths [B] -> bool [B, width]."""
    return _choose(_words(lengths, width), generator, probability)


def choose_regions(lengths: Tensor, generator: torch.Generator, probability: float = 0.15) -> Tensor:
    """Each region with `probability`, at least one an image: lengths int64 [B] -> bool [sum(lengths)], flat."""
    owner = torch.repeat_interleave(torch.arange(lengths.numel(), device=lengths.device), lengths)
    draw = _uniform(tuple(owner.shape), generator)
    lowest = draw.new_full((lengths.numel(),), torch.inf).scatter_reduce(0, owner, draw, "amin")
    return (draw < probability) | (draw == lowest[owner])


def corrupt(ids: Tensor, chosen: Tensor, vocab: Vocabulary, generator: torch.Generator) -> Tensor:
    """Hide the chosen pieces: 80 % [MASK], 10 % a random piece, 10 % unchanged: int64 [..., L] -> int64 [..., L].

    `chosen` bool [..., L]. The random piece is any but the special ones, each as likely as another.
    """
    draw = _uniform(tuple(ids.shape), generator)
    pieces = ordinary_pieces(vocab, ids.device)
    other = pieces[torch.randint(pieces.numel(), ids.shape, generator=generator, device=ids.device)]
    hidden = torch.where(draw < 0.8, vocab.mask, torch.where(draw < 0.9, other, ids))
    return torch.where(chosen, hidden, ids)


def ordinary_pieces(vocab: Vocabulary, device: torch.device | str = "cpu") -> Tensor:
    """Every piece but the special ones, ascending: int64 [V - 5]."""
    ordinary = torch.ones(vocab.size, dtype=torch.bool, device=device)
    ordinary[vocab.special(device)] = False
    return ordinary.nonzero().squeeze(1)


def _words(lengths: Tensor, width: int) -> Tensor:
    """bool [B, width]: true between [CLS] and [SEP]."""
    column = torch.arange(width, device=lengths.device)
    return (column >= 1) & (column < lengths[:, None] - 1)


def _choose(eligible: Tensor, generator: torch.Generator, probability: float) -> Tensor:
    """Each eligible position with `probability`, at least one: bool [..., L] -> bool [..., L].

    The lowest draw is taken in any case; where none fell below `probability` it is each as likely as another."""
    draw = _uniform(tuple(eligible.shape), generator).masked_fill(~eligible, torch.inf)
    return ((draw < probability) | (draw == draw.amin(dim=-1, keepdim=True))) & eligible


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 in [0, 1) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device)
