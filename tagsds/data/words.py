"""Word pieces and the text they stand for: spelling, words of several pieces, a sentence with some pieces replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tagsds.data.ragged import Ragged
from tagsds.errors import UserError

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


def words_of(pieces: Sequence[str]) -> list[list[int]]:
    """Positions of the pieces of each word: a piece with ## continues the word before it.

    >>> words_of(["a", "skate", "##board", "."])
    [[0], [1, 2], [3]]
    """
    words: list[list[int]] = []
    for position, piece in enumerate(pieces):
        if piece.startswith(CONTINUES) and words:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def join_pieces(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is known of word pieces as what is known of words, one dict a piece -> one dict a word.

    text         spellings are joined
    replaced     whether any piece is
    suspicion    the highest of the pieces; None is left
    correction   spellings are joined; None is left
    certainty    of the correction (may be absent): the product, as the pieces were chosen independently
    """
    words: list[dict[str, Any]] = []
    for word in words_of([piece["text"] for piece in pieces]):
        joined = dict(pieces[word[0]])
        for piece in (pieces[position] for position in word[1:]):
            joined["text"] += piece["text"].removeprefix(CONTINUES)
            joined["replaced"] |= piece["replaced"]
            if piece["suspicion"] is not None:
                joined["suspicion"] = max(joined["suspicion"], piece["suspicion"])
            if piece["correction"] is not None:
                joined["correction"] += piece["correction"].removeprefix(CONTINUES)
            if "certainty" in piece:
                joined["certainty"] *= piece["certainty"]
        words.append(joined)
    return words


@dataclass(frozen=True)
class Spelling:
    """A sentence as text and as word pieces. n = pieces, [CLS] and [SEP] not among them.

    ids        n numbers of pieces
    pieces     n spellings
    offsets    n character ranges [a, b) of `text`
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]

    @staticmethod
    def of(tokenizer: Any, text: str) -> Spelling:
        """Of a text."""
        found = tokenizer(text, return_offsets_mapping=True)
        ids, offsets = found["input_ids"][1:-1], found["offset_mapping"][1:-1]
        return Spelling(text, tuple(ids), tuple(tokenizer.convert_ids_to_tokens(ids)), tuple((a, b) for a, b in offsets))

    @staticmethod
    def of_ids(tokenizer: Any, ids: Sequence[int], text: str = "") -> Spelling:
        """Of pieces: with `text` where it reads as these pieces, else as `spell` writes them (imported word pieces)."""
        if text and (found := Spelling.of(tokenizer, text)).ids == tuple(ids):
            return found
        pieces = tokenizer.convert_ids_to_tokens(list(ids))
        text, offsets = spell(pieces)
        return Spelling(text, tuple(ids), tuple(pieces), tuple(offsets))

    def words(self) -> list[list[int]]:
        """Positions of the pieces of each word."""
        return words_of(self.pieces)

    def chars(self, word: Sequence[int]) -> tuple[int, int]:
        """The characters [a, b) of a word, given as positions of its pieces."""
        return self.offsets[word[0]][0], self.offsets[word[-1]][1]

    def rewritten(self, pieces: Sequence[str]) -> str:
        """The text with other pieces (n of them) in their places. What is not replaced keeps its characters, case and blanks; a
        replacement of a word that begins with a capital gets one."""
        out, end = "", 0
        for position, (piece, (a, b)) in enumerate(zip(pieces, self.offsets, strict=True)):
            old, gap = self.pieces[position], self.text[end:a]
            new = self.text[a:b] if piece == old else piece.removeprefix(CONTINUES)
            if piece != old and self.text[a : a + 1].isupper() and not piece.startswith(CONTINUES):
                new = new[:1].upper() + new[1:]
            if piece.startswith(CONTINUES) and position:
                gap = ""
            elif old.startswith(CONTINUES) and not gap:  # what was the rest of a word is now a word
                gap = " "
            out, end = out + gap + new, b
        return out + self.text[end:]


def sentence_table(
    tokenizer: Any, texts: Sequence[str], positions: int | None, where: str = "", remedy: str = "shorten it"
) -> Ragged:
    """Word pieces of texts with [CLS] and [SEP], int64, a row a text. UserError for a text longer than the model has positions
    (None: no limit); `where` stands behind the text in the sentence, `remedy` ends it."""
    rows = tokenizer(list(texts))["input_ids"]
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if positions is not None and len(rows[longest]) > positions:
        raise UserError(
            f"the caption '{texts[longest][:60]}...'{where} has {len(rows[longest])} word pieces, the checkpoint's "
            f"max_position_embeddings is {positions}; {remedy}."
        )
    return Ragged.from_rows([torch.tensor(row, dtype=torch.int64) for row in rows])
