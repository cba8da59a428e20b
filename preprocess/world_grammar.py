"""Captions of the drawn world: words with roles, the statements they make, and whether a scene agrees.

A caption is a flat list of words; a statement refers to words by position. Replacing one word therefore edits the
meaning and the text at once, and the same evaluator says whether the edited caption still holds.

Objects are compared by their centres in pixels. `margin` is how clearly a position has to hold: a true caption holds at
TRUE_MARGIN, an edited one must fail at margin 0, so that borderline scenes are in neither class.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

from preprocess.records import Span

KINDS = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "black")
SIZES = ("small", "large")
COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
CANVAS = 96  # pixels, width and height of a picture
TRUE_MARGIN = 8.0  # pixels by which a stated position holds

PLURAL = {kind: kind + ("es" if kind == "cross" else "s") for kind in KINDS}
KIND_OF = {**{kind: kind for kind in KINDS}, **{plural: kind for kind, plural in PLURAL.items()}}

# surface word -> meaning; a word is edited into one of the opposite list, which fits the same sentence
RELATION_OF = {
    "left": "left", "right": "right", "above": "above", "over": "above", "higher": "above",
    "below": "below", "under": "below", "beneath": "below", "lower": "below",
    "bigger": "larger", "larger": "larger", "smaller": "smaller",
}  # fmt: skip
OPPOSITES = {
    "left": ("right",), "right": ("left",), "above": ("below", "under", "beneath"),
    "over": ("below", "under", "beneath"),
    "below": ("above", "over"), "under": ("above", "over"), "beneath": ("above", "over"), "higher": ("lower",),
    "lower": ("higher",), "bigger": ("smaller",), "larger": ("smaller",), "smaller": ("larger", "bigger"),
    "leftmost": ("rightmost",), "rightmost": ("leftmost",), "highest": ("lowest",), "lowest": ("highest",),
    "top": ("bottom",), "bottom": ("top",),
}  # fmt: skip
EXTREMES = {"leftmost": ("x", 1), "rightmost": ("x", -1), "highest": ("y", 1), "lowest": ("y", -1)}
SPAN_OF_ROLE = {
    "object": "object",
    "colour": "attribute",
    "size": "attribute",
    "count": "attribute",
    "relation": "relation",
}
EDIT_KINDS = ("object", "colour", "size", "relation", "count")


@dataclass(frozen=True)
class Thing:
    """An object of a scene: centre (x, y) and radius in pixels, y downwards."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


class Word(NamedTuple):
    """A word, the role it plays ('' for none), and the span it belongs to (-1 for none)."""

    text: str
    role: str = ""
    span: int = -1


class Phrase(NamedTuple):
    """A noun phrase by the positions of its words; None where it does not say."""

    kind: int | None = None
    colour: int | None = None
    size: int | None = None


class Statement(NamedTuple):
    """`op` is exists, count, relation, extreme or corner; `words` are the positions of its own words."""

    op: str
    phrases: tuple[Phrase, ...]
    words: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sentence:
    """Words and what they state."""

    words: tuple[Word, ...]
    statements: tuple[Statement, ...]

    @property
    def text(self) -> str:
        """Words joined by single spaces, commas attached."""
        return " ".join(word.text for word in self.words).replace(" ,", ",")

    def spans(self) -> tuple[Span, ...]:
        """Spans with character offsets into `text`; the words of one span that are neighbours make one range."""
        found: dict[int, tuple[str, int, int]] = {}
        end = 0
        for index, word in enumerate(self.words):
            start = end if index == 0 or word.text == "," else end + 1
            end = start + len(word.text)
            if word.span >= 0:
                kind, first, _ = found.get(word.span, (SPAN_OF_ROLE[word.role], start, end))
                found[word.span] = (kind, first, end)
        return tuple(Span(kind, ((first, last),)) for kind, first, last in found.values())

    def with_word(self, position: int, text: str) -> Sentence:
        """The same sentence with one word replaced."""
        words = list(self.words)
        words[position] = words[position]._replace(text=text)
        return replace(self, words=tuple(words))

    def holds(self, scene: list[Thing], margin: float = TRUE_MARGIN) -> bool:
        """True if every statement holds of the scene by `margin` pixels."""
        return all(self._holds(statement, scene, margin) for statement in self.statements)

    def _matches(self, phrase: Phrase, thing: Thing) -> bool:
        words = self.words
        return (
            (phrase.kind is None or KIND_OF[words[phrase.kind].text] == thing.kind)
            and (phrase.colour is None or words[phrase.colour].text == thing.colour)
            and (phrase.size is None or words[phrase.size].text == thing.size)
        )

    def _holds(self, statement: Statement, scene: list[Thing], margin: float) -> bool:
        stated = [self.words[position].text for position in statement.words]
        matching = [[thing for thing in scene if self._matches(phrase, thing)] for phrase in statement.phrases]
        if statement.op == "exists":
            return bool(matching[0])
        if statement.op == "count":
            return len(matching[0]) == COUNTS[stated[0]]
        if statement.op == "relation":
            pairs = itertools.product(*matching)
            return any(a is not b and _related(RELATION_OF[stated[0]], a, b, margin) for a, b in pairs)
        if statement.op == "extreme":
            axis, sign = EXTREMES[stated[0]]
            return any(
                all(
                    sign * (getattr(other, axis) - getattr(thing, axis)) >= margin
                    for other in scene
                    if other is not thing
                )
                for thing in matching[0]
            )
        if statement.op == "corner":
            middle = CANVAS / 2
            down = 1 if stated[0] == "bottom" else -1
            right = 1 if stated[1] == "right" else -1
            return any(
                down * (thing.y - middle) > margin and right * (thing.x - middle) > margin for thing in matching[0]
            )
        raise ValueError(statement.op)


def _related(relation: str, a: Thing, b: Thing, margin: float) -> bool:
    """Whether a stands in `relation` to b, by more than `margin` pixels where it is a position."""
    if relation == "left":
        return b.x - a.x > margin
    if relation == "right":
        return a.x - b.x > margin
    if relation == "above":
        return b.y - a.y > margin
    if relation == "below":
        return a.y - b.y > margin
    if relation == "larger":
        return a.size == "large" and b.size == "small"
    return a.size == "small" and b.size == "large"


def alternatives(word: Word) -> tuple[str, ...]:
    """Words that fit where `word` stands and mean something else."""
    if word.role == "object":
        return tuple(
            PLURAL[kind] if word.text in PLURAL.values() else kind for kind in KINDS if kind != KIND_OF[word.text]
        )
    known = {"colour": COLOURS, "size": SIZES, "count": tuple(COUNTS)}
    if word.role in known:
        return tuple(other for other in known[word.role] if other != word.text)
    return OPPOSITES.get(word.text, ())
