"""Drawings of boxes, their sentences, and where pictures are found."""

import hashlib
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import webdataset

from tagsds.errors import UserError
from tagsds.reporting.boxes import COLOURS, LABEL, WIDTH, boxes_svg, colours_of, drawn_regions, label_width, labels_of, overlap
from tagsds.reporting.pictures import file_names, find_pictures
from tagsds.reporting.wording import counted, plural, sentence_of
from tests import tiny_corpus as tiny
from tests.browser import browser, contrast_failures, hidden_width

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "names, sentence",
    [
        ([], "Nothing detected."),
        (["dog"], "Box of a dog."),
        (["person", "dog", "person", "frisbee"], "Boxes of two persons, a dog and a frisbee."),
        (["apple", "umbrella", "unicycle"], "Boxes of an apple, an umbrella and a unicycle."),
        (["sheep"] * 10, "Boxes of ten sheep."),
        (["wine glass"] * 11, "Boxes of 11 wine glasses."),
        (["scissors", "skis", "skis"], "Boxes of a pair of scissors and two pairs of skis."),
        (["", "", ""], "Boxes of three regions."),
        ([""], "Box of a region."),
        (["dog", "", "dog", ""], "Boxes of two dogs and two other regions."),
        (["red cross", "red cross"], "Boxes of two red crosses."),
    ],
)
def test_sentences(names, sentence):
    assert sentence_of(names) == sentence


def test_plurals():
    one = "person dog bus bench toothbrush knife mouse sandwich child snowman human berry toy leaf Woman"
    two = "persons dogs buses benches toothbrushes knives mice sandwiches children snowmen humans berries toys leaves Women"
    assert [plural(word) for word in one.split()] == two.split()
    assert [counted(1, word) for word in ("orange", "uniform", "hour hand", "broccoli")] == [
        "an orange",
        "a uniform",
        "an hour hand",
        "broccoli",
    ]


def luminance(colour: str) -> float:
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours():
    for colour in COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5  # white text on it
        assert (luminance(colour) + 0.05) / (luminance("#12161d") + 0.05) >= 3  # a line of it on the dark page
    names = [f"class {i}" for i in range(len(COLOURS))]
    assert len(set(colours_of(names).values())) == len(COLOURS)
    assert colours_of(["dog"])["dog"] == colours_of(["dog", "dog"])["dog"]


def test_a_drawing():
    boxes = [[0.5, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 0.5], [0.25, 0.5, 0.5, 0.75]]
    drawing = ElementTree.fromstring(boxes_svg(boxes, ["dog", "<b>&", ""], 2.0, standalone=True))
    assert drawing.get("viewBox") == "0 0 200 100" and drawing.get("role") == "img"
    assert drawing.find(f"{SVG}title").text == "Boxes of a <b>&, a dog and another region."
    groups = drawing.findall(f"{SVG}g")
    assert [group.find(f"{SVG}title").text for group in groups] == ["<b>&", "dog", "region"]  # large to small
    shapes = [{k: group.find(f"{SVG}rect").get(k) for k in ("x", "y", "width", "height")} for group in groups]
    assert [list(map(float, shape.values())) for shape in shapes] == [[0, 0, 200, 50], [100, 50, 50, 50], [50, 50, 50, 25]]
    assert [text.text for text in drawing.findall(f"{SVG}text")] == ["<b>&", "dog"]
    inline = boxes_svg(boxes, ["dog", "<b>&", ""], 2.0)
    assert "<b>" not in inline and "xmlns" not in inline and "http" not in inline
    with pytest.raises(ValueError, match="3 boxes and 1 names"):
        boxes_svg(boxes, ["dog"])


def test_an_empty_drawing():
    drawing = ElementTree.fromstring(boxes_svg(np.zeros((0, 4)), [], standalone=True))
    assert drawing.find(f"{SVG}title").text == "Nothing detected."


def test_labels_never_cover_each_other():
    generator = np.random.default_rng(0)
    for count, kinds in ((3, 3), (12, 6), (40, 25), (63, 5)):
        corners = np.sort(generator.random((count, 2, 2)), axis=1).reshape(count, 4) * [200, 150, 200, 150]
        places = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in corners.tolist()]
        names = [f"{'long ' * (i % kinds % 3)}kind {i % kinds}" for i in range(count)]
        labels = labels_of(places, names, 150)
        for number, (_, _, spot) in enumerate(labels):
            assert spot[0] >= 0 and spot[1] >= 0 and spot[0] + spot[2] <= WIDTH + 1e-6 and spot[1] + LABEL <= 150
            assert not any(overlap(spot, other) for _, _, other in labels[:number])
        if kinds <= 6:
            assert {names[i] for i, _, _ in labels} == set(names)  # each class is named
    same = [(0.0, 0.0, 200.0, 150.0)] * 4
    assert len(labels_of(same, ["a", "b", "c", "d"], 150)) == 4  # four corners
    ((_, text, spot),) = labels_of(same[:1], ["a name that is far too long for any drawing of boxes"], 150)
    assert text.endswith("…") and spot[2] == label_width(text) <= WIDTH * 0.6


def shards_with_classes(folder, background=False):
    """An image without boxes, one with boxes and classes, one whose picture has another aspect."""
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    names = [*(["background"] if background else []), "dog, hound", "cat"]

    def classes(*columns):
        rows = np.full((len(columns), len(names)), 0.1 / (len(names) - 1), np.float16)
        rows[np.arange(len(columns)), [c + background for c in columns]] = 0.9
        return rows

    flat = np.full((1, len(names)), 1 / len(names), np.float16)
    images = {
        "a": ([[0.1, 0.1, 0.2, 0.2], [0.0, 0.0, 0.5, 1.0]], classes(0, 1), None),
        "b": ([[0, 0, 1, 1]], flat, None),
        "c": ([[0.5, 0.5, 1, 1]], classes(0), tiny.picture("red")),
        "d": (None, None, None),
    }
    path = folder / "test-000000.tar"
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for key, (boxes, soft, picture) in images.items():
            tar.write({"__key__": key, "regions.npy": tiny._npy(np.ones((len(boxes or [0]), 8), np.float16))})
            if boxes is not None:
                tar.write({"__key__": key, "boxes.npy": tiny._npy(np.array(boxes, np.float32))})
                tar.write({"__key__": key, "classes.npy": tiny._npy(soft)})
            tar.write({"__key__": key, "captions.json": b'[{"text": "a dog"}]'})
            if picture:
                tar.write({"__key__": key, "image.png": picture})
    shard = {"file": path.name, "samples": 4, "captions": 4, "regions": 5, "bytes": path.stat().st_size}
    shard["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {
        "format": "tagsds-shards", "version": 1, "feature_dim": 8, "num_classes": len(names), "class_names": names,
        "max_regions": 2, "max_caption_pieces": 12, "vocab_size": len(tiny.WORDS), "background_class": background,
        "splits": {"test": {"images": 4, "captions": 4, "regions": 5, "shards": [shard]}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("background", [False, True])
def test_regions_of_the_shards(tmp_path, background):
    found = drawn_regions(shards_with_classes(tmp_path, background), ["a", "b", "c", "d", "nowhere"], ["test"])
    assert set(found) == {"a", "b", "c"}  # d has no boxes
    boxes, names, aspect = found["a"]
    assert names == ["cat", "dog"] and aspect == 4 / 3  # large first, a class by its first synonym
    assert boxes == pytest.approx(np.array([[0, 0, 0.5, 1], [0.1, 0.1, 0.2, 0.2]]))
    assert found["b"][0].shape == (0, 4) and found["b"][1] == []  # the whole image, of no class: an image without boxes
    assert found["c"][1:] == (["dog"], 40 / 30)
    assert drawn_regions(tmp_path, []) == {}


def test_shards_without_classes(tmp_path):
    boxes, names, _ = drawn_regions(tiny.write_shards(tmp_path / "shards"), [tiny.key(0)])[tiny.key(0)]
    assert len(boxes) >= 2 and names == [""] * len(boxes)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    assert (np.diff(area) <= 0).all() and re.fullmatch(r"Boxes of (two|three|four) regions\.", sentence_of(names))


def test_pictures_of_a_folder(tmp_path):
    shards, folder = tiny.write_shards(tmp_path / "shards"), tmp_path / "pictures"
    folder.mkdir()
    (folder / "COCO_val2014_000000000003.jpg").write_bytes(b"three")
    (folder / "000000000004.PNG").write_bytes(b"four")
    (folder / "5.webp").write_bytes(b"five")
    (folder / "dog.jpeg").write_bytes(b"dog")
    (tmp_path / "outside.jpg").write_bytes(b"outside")
    keys = [
        tiny.key(2),
        tiny.key(3),
        "COCO_train2014_000000000004",
        tiny.key(5),
        "dog",
        "dog.jpeg",
        "../outside",
        str(tmp_path / "outside"),
    ]
    found = find_pictures(shards, keys, ["test"], folder)
    assert found.pop(tiny.key(2)).startswith(b"\x89PNG")  # of the shards
    assert found == {tiny.key(3): b"three", keys[2]: b"four", tiny.key(5): b"five", "dog": b"dog", "dog.jpeg": b"dog"}
    assert find_pictures(shards, [tiny.key(3)])[tiny.key(3)] != b"three"
    assert not list(file_names("a/b")) and not list(file_names("..")) and not list(file_names(""))
    with pytest.raises(UserError, match=r"--pictures .*nowhere is no folder"):
        find_pictures(shards, ["dog"], directory=tmp_path / "nowhere")


@pytest.mark.parametrize("dark", [False, True])
def test_a_drawing_in_a_browser(tmp_path, dark):
    generator = np.random.default_rng(1)
    kinds = ["person", "traffic light", "WWW", "illicit", "dining table"]
    figures = "".join(
        boxes_svg(np.sort(generator.random((n, 2, 2)), axis=1).reshape(n, 4), [kinds[i % 5] for i in range(n)]) for n in (0, 2, 9)
    )
    scheme = "@media (prefers-color-scheme: dark) { :root { --page: #12161d; --soft: #9aa6b6 } }"
    (tmp_path / "page.html").write_text(
        f"<!DOCTYPE html><meta charset=utf-8><style>{scheme}</style><body>{figures}<p style='color:#888'>pale</p>"
    )
    with browser(400, dark=dark) as driver:
        driver.get((tmp_path / "page.html").as_uri())
        assert [entry["text"] for entry in contrast_failures(driver)] == ["pale"]  # which is there to be found
        assert hidden_width(driver) == 0
        widths = "[t.textContent, t.getBBox().width, t.previousElementSibling.getBBox().width]"
        script = f"return [...document.querySelectorAll('svg text')].map(t => {widths})"
        for text, width, label in driver.execute_script(script):
            assert text == "nothing detected" or width <= label - 6  # the text stays within its label
