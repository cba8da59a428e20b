"""Spans of real captions by rules, and from a parse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from preprocess.spans import SpanFinder, find_spans, resolve, spacy_spans
from tagsds.errors import UserError


def found(text: str) -> dict[str, list[str]]:
    spans: dict[str, list[str]] = {"object": [], "attribute": [], "relation": []}
    for span in find_spans(text):
        spans[span.kind] += [text[a:b] for a, b in span.chars]
    return spans


@pytest.mark.parametrize(
    ("text", "objects", "attributes", "relations"),
    [
        ("A tan toilet and sink combination in a small room.", "toilet, sink combination, room", "tan, small", "in"),
        ("Two men playing a game of tennis.", "men, game, tennis", "Two", "playing"),
        ("A woman holding a tennis racket.", "woman, tennis racket", "", "holding"),
        (
            "A black Honda motorcycle parked in front of a garage.",
            "Honda motorcycle, garage",
            "black",
            "parked in front of",
        ),
        ("a dog that is sitting next to a red fire hydrant", "dog, fire hydrant", "red", "sitting next to"),
        ("A cat lies on top of an old wooden table", "cat, table", "old, wooden", "lies on top of"),
        ("People stand near a parked car.", "People, car", "parked", "stand near"),
        ("A living room with a couch, a lamp and a tv.", "living room, couch, lamp, tv", "", "with"),
        ("A hot dog with french fries on a white plate", "hot dog, french fries, plate", "white", "with, on"),
        ("The brick building has a large clock.", "building, clock", "brick, large", "has"),
        ("a man skiing down a snowy slope", "man, slope", "snowy", "skiing down"),
        ("A group of people are flying kites", "people, kites", "group", "flying"),
        ("A parking meter beside an orange truck", "parking meter, truck", "orange", "beside"),
        ("An orange on a plate", "orange, plate", "", "on"),
        ("A man is trying to catch a frisbee.", "man, frisbee", "", "trying, catch"),
    ],
)
def test_sentences_read_by_hand(text: str, objects: str, attributes: str, relations: str) -> None:
    spans = found(text)
    expected = {"object": objects, "attribute": attributes, "relation": relations}
    assert {kind: ", ".join(words) for kind, words in spans.items()} == expected


@pytest.mark.parametrize(
    "text", ["", "...", "a", "the of and", "\u201cStop\u201d sign \u2014 na\u00efve caf\u00e9 \U0001f600 dog's"]
)
def test_odd_texts_give_valid_offsets(text: str) -> None:
    for span in find_spans(text):
        for a, b in span.chars:
            assert 0 <= a < b <= len(text) and text[a:b] == text[a:b].strip()


def test_spans_do_not_overlap_and_reach_most_words(shared_data: Path) -> None:
    notes = json.loads((shared_data / "coco_val2017" / "captions_val2017.json").read_text())["annotations"][:2000]
    with_object = 0
    for note in notes:
        end = 0
        spans = find_spans(note["caption"])
        for span in spans:
            for a, b in span.chars:
                assert end <= a < b <= len(note["caption"])
                end = b
        with_object += any(span.kind == "object" for span in spans)
    assert with_object / len(notes) > 0.99


def token(i: int, idx: int, text: str, pos: str, dep: str = "") -> SimpleNamespace:
    return SimpleNamespace(i=i, idx=idx, text=text, pos_=pos, dep_=dep)


def test_spans_from_a_parse() -> None:
    text = "A parked tennis bus stands in front"
    words = ["DET", "VERB", "NOUN", "NOUN", "VERB", "ADP", "NOUN"]
    doc, at = [], 0
    for i, (word, pos) in enumerate(zip(text.split(), words)):
        doc.append(token(i, at, word, pos, "amod" if word == "parked" else ""))
        at += len(word) + 1
    got = [(s.kind, text[s.chars[0][0] : s.chars[0][1]]) for s in spacy_spans(doc)]
    assert got == [("attribute", "parked"), ("object", "tennis bus"), ("relation", "stands in"), ("object", "front")]


def test_spacy_asked_for_but_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(UserError, match="needs spaCy with en_core_web_sm; install both or use --spans rules"):
        SpanFinder("spacy")
    assert resolve("auto") == "rules"
