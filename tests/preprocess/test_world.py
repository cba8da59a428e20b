"""The drawn world: what the sentences say is so, what the edits say is not, and both can be seen."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from preprocess import world
from preprocess.sources.world import WorldSource
from preprocess.world_captions import write_captions, write_edits
from preprocess.world_grammar import EDIT_KINDS, Phrase, Sentence, Statement, Thing, Word

SCENE = [
    Thing("circle", "red", "small", 20.0, 20.0, 7.0),
    Thing("star", "blue", "large", 70.0, 24.0, 15.0),
    Thing("circle", "green", "small", 40.0, 80.0, 7.0),
]


def sentence(text: str, op: str, phrases: list[Phrase], words: list[int]) -> Sentence:
    return Sentence(tuple(Word(word) for word in text.split()), (Statement(op, tuple(phrases), tuple(words)),))


def relation(text: str, position: int) -> Sentence:
    """'colour kind ... colour kind' with the relation's word at `position`."""
    last = len(text.split()) - 1
    return sentence(text, "relation", [Phrase(1, 0), Phrase(last, last - 1)], [position])


@pytest.mark.parametrize(
    ("text", "position", "true"),
    [
        ("red circle left of blue star", 2, True),
        ("red circle right of blue star", 2, False),
        ("red circle above blue star", 2, False),  # 4 pixels higher is too little to be said
        ("red circle below blue star", 2, False),
        ("green circle beneath red circle", 2, True),
        ("blue star bigger than red circle", 2, True),
        ("red circle larger than green circle", 2, False),
        ("red star left of blue star", 2, False),  # there is no red star
    ],
)
def test_relations_against_a_scene_worked_by_hand(text: str, position: int, true: bool) -> None:
    assert relation(text, position).holds(SCENE) is true


def test_borderline_position_is_neither_true_nor_false() -> None:
    above = relation("red circle above blue star", 2)
    assert not above.holds(SCENE) and above.holds(SCENE, margin=0.0)


@pytest.mark.parametrize(
    ("text", "op", "phrase", "words", "true"),
    [
        ("two circles", "count", Phrase(kind=1), [0], True),
        ("three circles", "count", Phrase(kind=1), [0], False),
        ("three shapes", "count", Phrase(), [0], True),
        ("two small shapes", "count", Phrase(size=1), [0], True),
        ("leftmost red circle", "extreme", Phrase(2, 1), [0], True),
        ("rightmost red circle", "extreme", Phrase(2, 1), [0], False),
        ("lowest green circle", "extreme", Phrase(2, 1), [0], True),
        ("highest red circle", "extreme", Phrase(2, 1), [0], False),  # by 4 pixels only
        ("top right blue star", "corner", Phrase(3, 2), [0, 1], True),
        ("top left blue star", "corner", Phrase(3, 2), [0, 1], False),
        ("bottom left green circle", "corner", Phrase(3, 2), [0, 1], False),  # 8 pixels from the middle, not more
        ("small blue star", "exists", Phrase(2, 1, 0), [], False),
        ("large blue star", "exists", Phrase(2, 1, 0), [], True),
    ],
)
def test_statements_against_a_scene_worked_by_hand(
    text: str, op: str, phrase: Phrase, words: list[int], true: bool
) -> None:
    assert sentence(text, op, [phrase], words).holds(SCENE) is true


def scenes(count: int, split: str = "test"):
    for index in range(count):
        scene = world.make_scene(world.generator(3, split, index, "scene"))
        yield index, scene, write_captions(scene, world.generator(3, split, index, "captions"))


def test_every_caption_is_true_and_every_edit_false_and_one_word_away() -> None:
    found = dict.fromkeys(EDIT_KINDS, 0)
    for index, scene, sentences in scenes(150):
        assert len({s.text for s in sentences}) == 5
        for caption in sentences:
            assert caption.holds(scene), caption.text
            for kind, edited in write_edits(caption, scene, world.generator(3, "test", index, "edits")).items():
                assert not edited.holds(scene, margin=0.0), edited.text
                before, after = caption.text.split(), edited.text.split()
                assert len(before) == len(after)
                assert sum(a != b for a, b in zip(before, after)) == 1, (caption.text, edited.text)
                found[kind] += 1
    assert min(found.values()) > 100, found


def test_spans_cover_whole_words_of_the_right_kind() -> None:
    known = {
        "object": {"circle", "stars", "crosses"},
        "attribute": {"red", "small", "two", "black"},
        "relation": {"above", "to the left of", "in the top left corner", "leftmost", "bigger than"},
    }
    seen: dict[str, set[str]] = {kind: set() for kind in known}
    for _, _, sentences in scenes(150):
        for caption in sentences:
            for span in caption.spans():
                ((a, b),) = span.chars
                assert (a == 0 or caption.text[a - 1] == " ") and (b == len(caption.text) or caption.text[b] in " ,")
                seen[span.kind].add(caption.text[a:b])
    for kind, words in known.items():
        assert words <= seen[kind]
        assert not any(words & other for name, other in seen.items() if name != kind)


def test_boxes_are_tight_and_colours_can_be_seen_in_the_features() -> None:
    source = WorldSource({"dev": 40}, seed=1)
    for key in source.splits()["dev"]:
        record = source.record("dev", key)
        pixels = np.asarray(Image.open(io.BytesIO(record.picture))).astype(int)
        background = pixels[0, 0]
        difference = abs(pixels - background).max(-1)
        outside = np.ones_like(difference, dtype=bool)
        for box, crop, label in zip(record.boxes, record.regions, record.classes):
            x1, y1, x2, y2 = (box * world.CANVAS).round().astype(int)
            differs = (difference > 10)[y1:y2, x1:x2]
            assert differs[0].any() and differs[-1].any() and differs[:, 0].any() and differs[:, -1].any()
            outside[y1:y2, x1:x2] = False
            colour = source.class_names[int(label.argmax())].split()[0]
            crop = (crop.reshape(8, 8, 3) + 0.5) * 255
            shape = crop[abs(crop - background).max(-1) > 0.8 * abs(crop - background).max()]
            nearest = min(world.RGB, key=lambda name: np.abs(shape.mean(0) - world.RGB[name]).sum())
            assert nearest == colour, (key, colour, shape.mean(0))
        assert difference[outside].max() <= 35  # a quarter of a pixel's area at most


def test_a_scene_depends_on_the_seed_and_on_nothing_else() -> None:
    def make(seed: int) -> list[tuple]:
        source = WorldSource({"train": 5}, seed)
        records = [source.record("train", key) for key in reversed(source.splits()["train"])]
        return [(r.picture, r.regions.tobytes(), [c.text for c in r.captions]) for r in records]

    assert make(0) == make(0)
    assert all(a[0] != b[0] for a, b in zip(make(0), make(1)))
