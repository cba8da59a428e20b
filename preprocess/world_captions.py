"""Writes five true sentences about a drawn scene, and minimally edited false ones."""

from __future__ import annotations

import itertools

import numpy as np

from preprocess.world_grammar import (
    CANVAS,
    COUNTS,
    EDIT_KINDS,
    EXTREMES,
    PLURAL,
    TRUE_MARGIN,
    Phrase,
    Sentence,
    Statement,
    Thing,
    Word,
    alternatives,
)

PHRASES = {  # relation -> ways to say it; the first word with a meaning carries it
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "lower than"),
    "larger": ("larger than", "bigger than"),
    "smaller": ("smaller than",),
}
CARRIERS = {word for way in PHRASES.values() for text in way for word in text.split()} - {
    "of",
    "to",
    "the",
    "on",
    "than",
}
LIST_FRAMES = ("", "", "a picture of", "there is", "the drawing shows", "we can see")
COUNT_FRAMES = ("there are", "the picture has", "a drawing of", "we can see")
ADDITIONS = (", and there is", ", with")
SIZE_SAID = 0.6  # probability that a noun phrase names the size


class Writer:
    """Collects the words and statements of one sentence about one scene."""

    def __init__(self, scene: list[Thing], rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        self.words: list[Word] = []
        self.statements: list[Statement] = []
        self.spans = 0

    def pick(self, options: tuple | list):
        """One of the options, uniformly."""
        return options[int(self.rng.integers(len(options)))]

    def shuffled(self, options: list) -> list:
        """The options in random order."""
        return [options[i] for i in self.rng.permutation(len(options))]

    def say(self, text: str) -> None:
        """Words without a role."""
        self.words += [Word(word) for word in text.split()]

    def mark(self, text: str, role: str) -> int:
        """Words that form one span; returns the position of the first."""
        position = len(self.words)
        self.words += [Word(word, role, self.spans) for word in text.split()]
        self.spans += 1
        return position

    def noun_phrase(self, thing: Thing) -> Phrase:
        """'a [size] colour kind'."""
        self.say("a")
        size = self.mark(thing.size, "size") if self.rng.random() < SIZE_SAID else None
        colour = self.mark(thing.colour, "colour")
        return Phrase(self.mark(thing.kind, "object"), colour, size)

    def exist(self, things: list[Thing]) -> None:
        """'a .. , a .. and a ..'."""
        for index, thing in enumerate(things):
            if index:
                self.say("and" if index == len(things) - 1 else ",")
            self.statements.append(Statement("exists", (self.noun_phrase(thing),)))

    def relate(self, a: Thing, b: Thing) -> None:
        """'a .. [is] left of a ..' with a relation that clearly holds."""
        relation = self.pick(relations(a, b))
        first = self.noun_phrase(a)
        if self.rng.random() < 0.6:
            self.say("is")
        way = self.pick(PHRASES[relation])
        start = self.mark(way, "relation")
        carrier = start + next(i for i, word in enumerate(way.split()) if word in CARRIERS)
        self.statements.append(Statement("relation", (first, self.noun_phrase(b)), (carrier,)))

    def count(self) -> None:
        """'three large shapes', 'two red circles': an exact count of everything that matches."""
        kind, colour, size = self.pick(countable(self.scene))
        number = sum(_fits(thing, kind, colour, size) for thing in self.scene)
        word = self.mark(next(text for text, value in COUNTS.items() if value == number), "count")
        size_at = self.mark(size, "size") if size else None
        colour_at = self.mark(colour, "colour") if colour else None
        kind_at = self.mark(PLURAL[kind], "object") if kind else None
        if kind is None:
            self.say(self.pick(("shapes", "objects")))
        self.statements.append(Statement("count", (Phrase(kind_at, colour_at, size_at),), (word,)))

    def place(self, thing: Thing) -> bool:
        """'a .. is in the top left corner' or 'the leftmost shape is a ..'; False where neither clearly holds."""
        options = [name for name in EXTREMES if _is_extreme(name, thing, self.scene)]
        corner = _corner(thing)
        if corner is not None:
            options.append("corner")
        if not options:
            return False
        choice = self.pick(options)
        if choice == "corner":
            phrase = self.noun_phrase(thing)
            self.say("is")
            start = self.mark(f"in the {corner} corner", "relation")
            self.statements.append(Statement("corner", (phrase,), (start + 2, start + 3)))
        else:
            self.say("the")
            word = self.mark(choice, "relation")
            self.say(self.pick(("shape", "object")) + " is")
            self.statements.append(Statement("extreme", (self.noun_phrase(thing),), (word,)))
        return True

    def sentence(self) -> Sentence:
        """What was collected."""
        return Sentence(tuple(self.words), tuple(self.statements))


def relations(a: Thing, b: Thing) -> list[str]:
    """Relations of a to b that hold by more than the margin."""
    found = []
    if abs(a.x - b.x) > TRUE_MARGIN:
        found.append("left" if a.x < b.x else "right")
    if abs(a.y - b.y) > TRUE_MARGIN:
        found.append("above" if a.y < b.y else "below")
    if a.size != b.size:
        found.append("larger" if a.size == "large" else "smaller")
    return found


def countable(scene: list[Thing]) -> list[tuple[str | None, str | None, str | None]]:
    """(kind, colour, size) descriptions, None for unsaid, that fit two objects or more."""
    options: list[tuple[str | None, str | None, str | None]] = [(None, None, None)]
    for thing in scene:
        options += [(thing.kind, None, None), (None, thing.colour, None), (None, None, thing.size)]
        options += [(thing.kind, thing.colour, None), (None, thing.colour, thing.size)]
    return [o for o in dict.fromkeys(options) if sum(_fits(thing, *o) for thing in scene) >= 2]


def write_captions(scene: list[Thing], rng: np.random.Generator) -> list[Sentence]:
    """Five different true sentences: a list, a relation, a count, a place, and a combination of two."""
    sentences: list[Sentence] = []
    plans = (_list_plan, _relation_plan, _count_plan, _place_plan, _combined_plan)
    while len(sentences) < len(plans):
        writer = Writer(scene, rng)
        plans[len(sentences)](writer)
        sentence = writer.sentence()
        if all(sentence.text != other.text for other in sentences):
            sentences.append(sentence)
    return sentences


def write_edits(sentence: Sentence, scene: list[Thing], rng: np.random.Generator) -> dict[str, Sentence]:
    """Per kind of edit at most one sentence that differs in one word and is false of the scene even at margin 0."""
    present = {getattr(thing, name) for thing in scene for name in ("kind", "colour", "size")}
    present |= {PLURAL[thing.kind] for thing in scene}
    edits: dict[str, Sentence] = {}
    for kind in EDIT_KINDS:
        options = [
            (position, other)
            for position, word in enumerate(sentence.words)
            if word.role == kind
            for other in alternatives(word)
        ]
        options = [options[i] for i in rng.permutation(len(options))]
        if rng.random() < 0.5:  # half of the time a word that is true of something else in the picture comes first
            options.sort(key=lambda option: option[1] not in present)
        for position, other in options:
            edited = sentence.with_word(position, other)
            if not edited.holds(scene, margin=0.0):
                edits[kind] = edited
                break
    return edits


def _list_plan(writer: Writer) -> None:
    writer.say(writer.pick(LIST_FRAMES))
    writer.exist(_distinct(writer)[:3])


def _relation_plan(writer: Writer) -> None:
    a, b, rest = _related_pair(writer)
    writer.relate(a, b)
    if rest and writer.rng.random() < 0.6:
        writer.say(writer.pick(ADDITIONS))
        writer.exist(rest[:1])


def _count_plan(writer: Writer) -> None:
    writer.say(writer.pick(COUNT_FRAMES))
    writer.count()
    writer.say(writer.pick(ADDITIONS))
    writer.exist(_distinct(writer)[:2])


def _place_plan(writer: Writer) -> None:
    things = _distinct(writer)
    placed = next((thing for thing in things if writer.place(thing)), None)
    rest = [thing for thing in things if thing is not placed]
    if placed is None:
        writer.exist(rest[:2])
    elif rest:
        writer.say(writer.pick(ADDITIONS))
        writer.exist(rest[:2])


def _combined_plan(writer: Writer) -> None:
    if writer.rng.random() < 0.5:
        writer.say(writer.pick(COUNT_FRAMES[:2]))
        writer.count()
        writer.say(writer.pick((", and", ",")))
        a, b, _ = _related_pair(writer)
        writer.relate(a, b)
    else:
        a, b, rest = _related_pair(writer)
        writer.relate(a, b)
        writer.say(writer.pick((", and", "while")))
        c, d = _related_pair(writer, first=rest)[:2]
        writer.relate(c, d)


def _distinct(writer: Writer) -> list[Thing]:
    """Things in random order, of those with the same colour and kind only one."""
    seen: dict[tuple[str, str], Thing] = {}
    for thing in writer.shuffled(writer.scene):
        seen.setdefault((thing.colour, thing.kind), thing)
    return list(seen.values())


def _related_pair(writer: Writer, first: list[Thing] | None = None) -> tuple[Thing, Thing, list[Thing]]:
    """Two things with some clear relation, one of them from `first` where possible, and the things left over."""
    pairs = [(a, b) for a, b in itertools.permutations(writer.scene, 2) if relations(a, b)]
    preferred = [pair for pair in pairs if first and (pair[0] in first or pair[1] in first)]
    a, b = writer.pick(preferred or pairs)
    rest = [t for t in _distinct(writer) if (t.colour, t.kind) not in {(a.colour, a.kind), (b.colour, b.kind)}]
    return a, b, rest


def _fits(thing: Thing, kind: str | None, colour: str | None, size: str | None) -> bool:
    return kind in (None, thing.kind) and colour in (None, thing.colour) and size in (None, thing.size)


def _is_extreme(name: str, thing: Thing, scene: list[Thing]) -> bool:
    axis, sign = EXTREMES[name]
    return all(sign * (getattr(o, axis) - getattr(thing, axis)) >= TRUE_MARGIN for o in scene if o is not thing)


def _corner(thing: Thing) -> str | None:
    x, y = thing.x - CANVAS / 2, thing.y - CANVAS / 2
    if min(abs(x), abs(y)) <= TRUE_MARGIN:
        return None
    return f"{'bottom' if y > 0 else 'top'} {'right' if x > 0 else 'left'}"
