"""Captions that arrive as word pieces: their spelling for people, and spans found in it as piece positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preprocess.records import Span

CONTINUES = "##"
AFTER_APOSTROPHE = {"s", "t", "re", "ve", "d", "ll", "m"}
CLOSING = set(".,!?:;)")


def spell(pieces: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of WordPieces and the characters [a, b) of each piece in it.

    WordPiece does not keep blanks around punctuation; they are guessed ("man ' s" -> "man's", "t - shirt" -> "t-shirt").

    >>> spell(["a", "skate", "##board", "."])
    ('a skateboard.', [(0, 1), (2, 7), (7, 12), (12, 13)])
    """
    text = ""
    offsets: list[tuple[int, int]] = []
    for i, piece in enumerate(pieces):
        word = piece.removeprefix(CONTINUES)
        if text and not (piece.startswith(CONTINUES) or word in CLOSING or _joins(pieces, i) or _joins(pieces, i - 1)):
            text += " "
        offsets.append((len(text), len(text) + len(word)))
        text += word
    return text, offsets


def _joins(pieces: Sequence[str], i: int) -> bool:
    """Whether piece i is an apostrophe or a hyphen inside a word."""
    if not 0 < i < len(pieces) - 1 or not pieces[i - 1][-1:].isalnum():
        return False
    if pieces[i] == "'":
        ends = i + 2 == len(pieces) or not pieces[i + 2].startswith(CONTINUES)
        return pieces[i + 1].lower() in AFTER_APOSTROPHE and ends
    return pieces[i] == "-" and pieces[i + 1][:1].isalnum()


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
