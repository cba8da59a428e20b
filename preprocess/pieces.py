"""Spans of captions that arrive as word pieces, found in their spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preprocess.records import Span
from tagsds.data.words import CONTINUES, spell

__all__ = ["CONTINUES", "piece_spans", "spell"]


def piece_spans(pieces: Sequence[str], find: Callable[[str], tuple[Span, ...]]) -> tuple[Span, ...]:
    """Spans that `find` sees in the spelling, as positions in `pieces`; none over a special piece such as [UNK]."""
    text, offsets = spell(pieces)
    found: list[Span] = []
    for span in find(text):
        inside = tuple(
            i for i, (a, b) in enumerate(offsets) if b > a and any(a < end and b > start for start, end in span.chars)
        )
        if inside and not any(pieces[i].startswith("[") and pieces[i].endswith("]") and len(pieces[i]) > 2 for i in inside):
            found.append(Span(span.kind, pieces=inside))
    return tuple(found)
