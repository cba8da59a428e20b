"""Edits of captions by rules: each kind on sentences worked by hand, and the command on a packed corpus."""

from __future__ import annotations

import json

import numpy as np
import pytest

from preprocess import edits as program
from preprocess.edits import EDITS, Caption, Part, Stock, form, make_edits, with_article
from tagsds.data.spans import find_spans
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.formats.manifest import read_manifest
from tests.programs import refusal


def caption(text: str, *others: str, key: str = "7") -> Caption:
    said = frozenset(program.WORD.findall(" ".join([text, *others]).lower()))
    return Caption(key, text, tuple(Part(span.kind, *span.chars[0]) for span in find_spans(text)), said)


def stock_of(*texts: str) -> Stock:
    return Stock([caption(text) for text in texts for _ in range(program.LEAST_COUNT)])


def edit(kind: str, of: Caption, stock: Stock, seed: int = 0) -> str | None:
    return EDITS[kind](of, stock, np.random.default_rng(seed))


STOCK = stock_of("An umbrella", "two cups", "an old red bus", "a bed beside a sofa", "a boy holding a kite", "a cat sleeping on it")


@pytest.mark.parametrize(
    ("kind", "text", "stock", "expected"),
    [
        ("replace_obj", "A dog on grass", stock_of("An umbrella"), {"An umbrella on grass", "A dog on umbrella"}),
        ("replace_obj", "Two dogs", stock_of("An umbrella", "some cups"), {"Two cups"}),  # one of the same number
        ("replace_att", "A white dog", stock_of("an orange bus", "two cats"), {"An orange dog"}),  # a colour is no number
        ("replace_rel", "a man riding a horse", stock_of("a boy holding a kite", "on a bed"), {"a man holding a horse"}),
        ("add_obj", "a dog", stock_of("An umbrella"), {"a dog with an umbrella"}),
        ("add_obj", "a dog", stock_of("some cups"), {"a dog with cups"}),
        ("add_att", "a dog", stock_of("an old bus"), {"an old dog"}),
        ("swap_obj", "a dog on an apple", STOCK, {"an apple on a dog"}),
        ("swap_att", "a red bus and an old car", STOCK, {"an old bus and a red car"}),
    ],
)  # fmt: skip
def test_each_kind_by_hand(kind, text, stock, expected):
    assert {edit(kind, caption(text), stock, seed) for seed in range(20)} == expected


@pytest.mark.parametrize(
    ("kind", "text", "others"),
    [
        ("replace_obj", "A dog", ["an umbrella"]),  # another caption of the image says it
        ("replace_att", "A dog", []),  # nothing to replace
        ("add_att", "a red dog", []),  # its only object has an attribute
        ("swap_obj", "a dog by a dog", []),
        ("swap_obj", "a dog by two cats", []),  # another number
        ("swap_att", "a red dog", []),
        ("replace_rel", "a dog", []),
    ],
)
def test_captions_that_are_left(kind, text, others):
    stock = stock_of("An umbrella", "an old bus", "a boy holding a kite")
    if kind == "replace_obj":
        stock = stock_of("An umbrella")
    assert all(edit(kind, caption(text, *others), stock, seed) is None for seed in range(20))


def test_words_that_few_captions_have_do_not_come_in():
    assert Stock([caption("a zebu")] * (program.LEAST_COUNT - 1)).words["object"] == []
    assert Stock([caption("a zebu")] * program.LEAST_COUNT).words["object"] == ["zebu"]


def test_words_come_in_as_often_as_they_are_used():
    stock = Stock([caption("a cup")] * 30 + [caption("an umbrella")] * 10)
    rng = np.random.default_rng(0)
    drawn = [stock.draw("object", caption("a dog"), rng) for _ in range(2000)]
    assert drawn.count("cup") / 2000 == pytest.approx(0.75, abs=0.03)


def test_articles_and_forms():
    found = [with_article(*both) for both in [("a ", "apple"), ("On An ", "bus"), ("the ", "apple"), ("data ", "a")]]
    assert found == ["an ", "On A ", "the ", "data "]
    assert form("object", "buses") == form("object", "people") != form("object", "bus") == form("object", "glass")
    assert form("relation", "sitting on") != form("relation", "sitting") and form("relation", "on") != form("relation", "holds")


def test_a_caption_at_most_once_and_the_same_again(world):
    manifest = read_manifest(world)
    captions = list(program.read_captions(manifest, "dev"))
    stock = Stock(list(program.read_captions(manifest, "train")))
    assert len(captions) == manifest.splits["dev"]["captions"]
    rows = make_edits("replace_att", captions, stock, 10_000, 1)
    assert rows == make_edits("replace_att", captions, stock, 10_000, 1) != make_edits("replace_att", captions, stock, 10_000, 2)
    assert rows[:5] == make_edits("replace_att", captions, stock, 5, 1)
    said = {key: {w for c in captions if c.key == key for w in c.said} for key in {c.key for c in captions}}
    for row in rows:
        new = set(row["negative_caption"].lower().split()) - set(row["caption"].lower().split()) - {"a", "an"}
        assert new and not new & said[row["filename"]]


def test_the_command(world, tmp_path, capsys):
    program.main(["--data", str(world), "--output", str(tmp_path), "--number", "6"])
    assert "replace_obj: 6 pairs, such as" in capsys.readouterr().out
    keys = [caption.key for caption in program.read_captions(read_manifest(world), "dev")]
    for kind in read_pairs([tmp_path], list(dict.fromkeys(keys))):
        assert 0 < len(kind.pairs) <= 6 and all(pair.caption != pair.negative for pair in kind.pairs)
    assert json.loads((tmp_path / "replace_obj.json").read_text())["0"].keys() == {"filename", "caption", "negative_caption"}


def test_what_a_user_is_told(world, tmp_path, capsys):
    said = refusal(program.main, capsys, "--data", world, "--split", "val", "--output", tmp_path)
    assert "has no split 'val'" in said and "dev" in said
    assert "--number is 0" in refusal(program.main, capsys, "--data", world, "--output", tmp_path, "--number", 0)
