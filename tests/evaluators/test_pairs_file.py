"""SugarCrepe's layout: read, matched to the split, refused with a sentence."""

import json

import pytest

from tagsds.errors import UserError
from tagsds.evaluators.pairs_file import KeyIndex, read_pairs

ENTRY = {"filename": "000000000007.jpg", "caption": "a dog", "negative_caption": "a cat"}


def write(path, entries):
    path.write_text(json.dumps(entries))
    return path


def test_a_file_is_a_kind(tmp_path):
    path = write(tmp_path / "replace_obj.json", {"0": ENTRY})
    (kind,) = read_pairs([path], ["000000000003", "000000000007"])
    assert (kind.kind, kind.skipped) == ("replace_obj", 0)
    assert [(p.image, p.caption, p.negative) for p in kind.pairs] == [(1, "a dog", "a cat")]


def test_a_folder_holds_a_file_a_kind(tmp_path):
    for name in ("relation", "attribute"):
        write(tmp_path / f"{name}.json", {"0": ENTRY})
    assert [kind.kind for kind in read_pairs([tmp_path], ["000000000007"])] == ["attribute", "relation"]


def test_coco_names_are_matched_by_number():
    index = KeyIndex(["COCO_val2014_000000000007", "9", "scene-11"])
    assert index.find("000000000007.jpg") == 0
    assert index.find("000000000009.jpg") == 1
    assert index.find("scene-11.png") == 2
    assert index.find("COCO_val2014_000000000007.jpg") == 0
    assert index.find("000000000011.jpg") is None


def test_unknown_images_are_counted(tmp_path):
    strange = {number: ENTRY | {"filename": f"{number}.jpg"} for number in ("99", "98")}
    path = write(tmp_path / "obj.json", {"0": ENTRY} | strange)
    with pytest.raises(UserError, match=r"obj.json: image '99.jpg' is not in the split \(so for 2 of 3 pairs\)"):
        read_pairs([path], ["000000000007"])
    (kind,) = read_pairs([path], ["000000000007"], skip_missing=True)
    assert (len(kind.pairs), kind.skipped) == (1, 2)
    with pytest.raises(UserError, match="no pair names an image"):
        read_pairs([path], ["000000000001"], skip_missing=True)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ("3", "no table of pairs"),
        (json.dumps({"0": {"filename": "7.jpg", "caption": "x"}}), "entry '0' lacks one of filename"),
        (json.dumps(["x"]), "entry '0' lacks one of filename"),
    ],
)
def test_bad_files(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_pairs([tmp_path / "bad.json"], ["7"])


def test_bad_paths(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_pairs([tmp_path / "none.json"], ["7"])
    with pytest.raises(UserError, match="folder without"):
        read_pairs([tmp_path], ["7"])
    (tmp_path / "a").mkdir()
    paths = [write(tmp_path / "obj.json", {"0": ENTRY}), write(tmp_path / "a" / "obj.json", {"0": ENTRY})]
    with pytest.raises(UserError, match="two files"):
        read_pairs(paths, ["7"])
