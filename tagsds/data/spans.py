"""Object, attribute and relation spans of captions by rules, with exact character offsets and no downloads.

Rules over closed-class words: nouns that stand together are one object ("tennis racket"), adjectives, colours and
numbers are attributes, verbs and prepositions are relations, a verb and the preposition after it one relation ("sitting
on top of").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tagsds.data import span_words as lists

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
SPAN_KINDS = ("object", "attribute", "relation")
KIND_OF_TAG = {"noun": "object", "adj": "attribute", "verb": "relation", "prep": "relation"}


@dataclass(frozen=True)
class Span:
    """A stretch of a caption that says one thing: `chars` are half-open character ranges, in order. Where the caption came
    as word-piece ids, `pieces` are positions in them, ascending, and `chars` is empty."""

    kind: str
    chars: tuple[tuple[int, int], ...] = ()
    pieces: tuple[int, ...] = ()

    def as_json(self) -> dict:
        """The form of captions.json."""
        if self.pieces:
            return {"kind": self.kind, "pieces": list(self.pieces)}
        return {"kind": self.kind, "chars": [list(pair) for pair in self.chars]}


def find_spans(text: str) -> tuple[Span, ...]:
    """Spans by rules.

    >>> [(s.kind, text[a:b]) for s in find_spans(text := "A man riding a red bike") for a, b in s.chars]
    [('object', 'man'), ('relation', 'riding'), ('attribute', 'red'), ('object', 'bike')]
    """
    tokens = [(match.start(), match.end()) for match in WORD.finditer(text)]
    words = [text[a:b].lower().replace("’", "'") for a, b in tokens]
    breaks = [bool(text[tokens[i - 1][1] : tokens[i][0]].strip()) if i else True for i in range(len(tokens))]
    tags = tag_words(words, breaks)
    spans: list[Span] = []
    previous = ""
    for (start, end), tag, broken in zip(tokens, tags, breaks):
        kind = KIND_OF_TAG.get(tag)
        continues = kind is not None and not broken and joins(previous, tag)
        if kind is not None and continues:
            first = spans[-1].chars[0][0]
            spans[-1] = Span(kind, ((first, end),))
        elif kind is not None:
            spans.append(Span(kind, ((start, end),)))
        previous = tag
    return tuple(spans)


def joins(before: str, tag: str) -> bool:
    """Whether a word continues the span of the word before it."""
    return (before, tag) in {("noun", "noun"), ("verb", "prep"), ("prep", "prep")}


def tag_words(words: list[str], breaks: list[bool]) -> list[str]:
    """noun, adj, verb, prep or '' for each word; `breaks[i]`: punctuation stands before word i."""
    tags = [""] * len(words)
    fixed = _multiword(words, tags)
    for i, word in enumerate(words):
        if i not in fixed:
            before = "" if breaks[i] else (words[i - 1] if i else "")
            tag_before = "" if breaks[i] else tags[i - 1]
            after = words[i + 1] if i + 1 < len(words) and not breaks[i + 1] else ""
            tags[i] = _tag(word, before, tag_before, after)
    return tags


def _multiword(words: list[str], tags: list[str]) -> set[int]:
    """Tag the relations that have several words; returns the positions taken."""
    taken: set[int] = set()
    for i in range(len(words)):
        if i in taken:
            continue
        fits = [p for p in lists.MULTIWORD_RELATIONS if tuple(words[i : i + len(p)]) == p]
        if fits:
            longest = max(fits, key=len)
            taken.update(range(i, i + len(longest)))
            tags[i : i + len(longest)] = ["prep"] * len(longest)
    return taken


def _tag(word: str, before: str, tag_before: str, after: str) -> str:
    """The tag of one word from its form and its neighbours."""
    if word in lists.AUXILIARIES:
        return "verb" if word in ("has", "have", "had") and tag_before in ("noun", "") and _opens_noun(after) else ""
    if (word, after) in lists.FIXED_NOUNS or (before, word) in lists.FIXED_NOUNS:
        return "noun"
    if word in lists.NUMBERS and _opens_noun(after):
        return "adj"
    if word == "next" or (word == "like" and tag_before == ""):
        return "" if word == "next" else "verb"
    if word == "outside" and not _opens_noun(after):
        return ""
    if word in lists.QUANTITY_NOUNS and after == "of":
        return "adj"
    if word in lists.SILENT_PREPOSITIONS or word in lists.CONJUNCTIONS:
        return ""
    if (word in lists.PREPOSITIONS or word in lists.PARTICLES) and word != "back":
        return "prep" if tag_before == "verb" or _opens_noun(after) else ""
    if word in lists.CLOSED:
        return ""
    if word.endswith("ly") and word not in lists.NOT_ADVERBS | lists.ADJECTIVES:
        return ""
    if is_verb(word, before, tag_before, after):
        modifies = _may_precede_noun(before, tag_before) and _is_content(after) and not _is_base(word)
        return "adj" if modifies else "verb"
    if word in lists.OWN_OR_NOUN:
        return "adj" if _is_content(after) else "noun"
    if word in lists.QUALITIES:
        return "adj"
    if word.endswith("'s"):
        return "noun"
    return "noun" if not word.isdigit() or not _is_content(after) else "adj"


def is_verb(word: str, before: str, tag_before: str, after: str) -> bool:
    """Whether a word is a verb form here; participles count, whatever they modify."""
    if word in lists.ING_VERBS_TOO and (
        before in lists.AUXILIARIES or (tag_before == "noun" and not _is_content(after))
    ):
        return True
    if word in lists.ING_NOUNS or (word in lists.ED_NOUNS and not _is_base(word)):
        return False
    if after == "of" and before in lists.DETERMINERS:  # "a cut of meat"
        return False
    if word.endswith("ing") and len(word) > 4:
        return not (word in lists.ING_COMPOUNDS and _is_content(after) and tag_before != "noun")
    if word in lists.PARTICIPLES:
        return not (word in ("left", "set", "cut", "hit", "shot") and tag_before not in ("noun", ""))
    if word.endswith("ed") and len(word) > 3 and word not in lists.QUALITIES:
        return True
    if _is_base(word):
        if before == "to":
            return True
        plural = before in lists.PLURAL_PEOPLE or (before.endswith("s") and not before.endswith("ss"))
        return word not in lists.NOUN_FIRST and ((tag_before == "noun" and plural) or before in ("that", "who", "they"))
    if any(base in lists.VERBS for base in _without_s(word)):
        follows = tag_before == "noun" or before in ("that", "who", "which", "it", "he", "she") or tag_before == "adv"
        return follows and not _is_plain_noun(after)
    return False


def _is_base(word: str) -> bool:
    return word in lists.VERBS


def _without_s(word: str) -> list[str]:
    """Base forms that a word in -s may come from."""
    if not word.endswith("s") or word.endswith("ss"):
        return []
    bases = [word[:-1]]
    if word.endswith("es"):
        bases.append(word[:-2])
    if word.endswith("ies"):
        bases.append(word[:-3] + "y")
    return bases


def _is_content(word: str) -> bool:
    """A word that can stand inside a noun phrase after a modifier: not closed-class, not a clear verb, not the end."""
    return bool(word) and word not in lists.CLOSED and not (word.endswith("ing") and word not in lists.ING_ANY_NOUN)


def _is_plain_noun(word: str) -> bool:
    """A noun or verb without -s: after a form in -s it makes a noun of that form unlikely to be a verb."""
    return _is_content(word) and word not in lists.MODIFIERS and word in lists.VERBS


def _opens_noun(word: str) -> bool:
    """Whether a noun phrase can begin with this word."""
    return word in lists.DETERMINERS or word in lists.PRONOUNS or _is_content(word) or word.endswith("ing")


def _may_precede_noun(before: str, tag_before: str) -> bool:
    """Whether a participle after this word can modify a noun: 'a parked car', not 'a car parked cars'."""
    if tag_before == "adj" or before in lists.DETERMINERS or before in lists.NUMBERS:
        return before != "that"
    return tag_before in ("prep", "verb") or before in ("", "of", "and")
