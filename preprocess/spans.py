"""Object, attribute and relation spans of real captions: by the rules of tagsds/data/spans.py, or from a parse where the user has
a spaCy pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tagsds.data import span_words as lists
from tagsds.data.spans import KIND_OF_TAG, Span, find_spans, joins
from tagsds.errors import UserError

__all__ = ["SpanFinder", "find_spans", "resolve", "spacy_spans"]

SPACY_PIPELINE = "en_core_web_sm"


class SpanFinder:
    """Finds the spans of a caption: `how` is rules or spacy."""

    def __init__(self, how: str) -> None:
        self._pipeline: Any = _load_spacy() if how == "spacy" else None

    def __call__(self, text: str) -> tuple[Span, ...]:
        """Spans in the order of their first character."""
        return find_spans(text) if self._pipeline is None else spacy_spans(self._pipeline(text))


def resolve(how: str) -> str:
    """'auto' becomes 'spacy' where a pipeline is installed, else 'rules'; the answer is part of a corpus's identity."""
    if how != "auto":
        return how
    try:
        _load_spacy()
    except UserError:
        return "rules"
    return "spacy"


def _load_spacy() -> Any:
    try:
        import spacy

        return spacy.load(SPACY_PIPELINE, exclude=["ner"])
    except (ImportError, OSError) as error:
        raise UserError(
            f"--spans spacy needs spaCy with {SPACY_PIPELINE}; install both or use --spans rules."
        ) from error


def spacy_spans(doc: Iterable[Any]) -> tuple[Span, ...]:
    """Spans from a parsed document: tokens with idx, text, pos_, dep_ and i, as spaCy gives them."""
    spans: list[Span] = []
    previous, previous_i = "", -2
    for token in doc:
        tag = {"NOUN": "noun", "PROPN": "noun", "ADJ": "adj", "NUM": "adj", "VERB": "verb", "ADP": "prep"}.get(
            token.pos_, ""
        )
        if tag == "prep" and token.text.lower() in lists.SILENT_PREPOSITIONS:
            tag = ""
        if tag == "verb" and token.dep_ == "amod":
            tag = "adj"
        start, end = token.idx, token.idx + len(token.text)
        if tag and token.i == previous_i + 1 and joins(previous, tag):
            spans[-1] = Span(KIND_OF_TAG[tag], ((spans[-1].chars[0][0], end),))
        elif tag:
            spans.append(Span(KIND_OF_TAG[tag], ((start, end),)))
        previous, previous_i = tag, token.i
    return tuple(spans)
