"""Source `coco`: both forms of boxes, both forms of splits, the features as documented, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import TinyCoco, load

from preprocess import pack
from preprocess.sources.coco import class_vector
from preprocess.sources.karpathy import image_key
from preprocess.verify import verify_corpus
from tagsds.errors import UserError

PERSON = [-0.02340265, 0.0445249, -0.06166955]


def test_order_keys_boxes_and_classes(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    pack.run(tiny_coco.write().arguments(tmp_path / "out"))
    train, test = load(tmp_path / "out", "train"), load(tmp_path / "out", "test")
    assert list(train) == ["000000000003", "000000000001"]  # the order of the split file
    assert [c["id"] for c in train["000000000001"]["captions.json"]] == ["10", "11"]  # the order of ids
    np.testing.assert_allclose(train["000000000001"]["boxes.npy"], [[0.1, 0.125, 0.5, 0.5]], rtol=1e-6)
    assert test["000000000002"]["classes.npy"].tolist() == [[0, 1, 0], [0, 0, 1]]
    boxes = test["000000000002"]["boxes.npy"]
    assert boxes[0].tolist() == [0, 0, 1, 1] and boxes[1, 0] == boxes[1, 2]  # the degenerate box is kept
    empty = test["000000000004"]
    assert empty["boxes.npy"].tolist() == [[0, 0, 1, 1]] and empty["regions.npy"].shape == (1, 64)
    np.testing.assert_allclose(empty["classes.npy"], 1 / 3, atol=1e-3)
    verify_corpus(tmp_path / "out")


def test_text_boxes_and_instances_give_the_same_samples(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.write()
    pack.run(tiny_coco.arguments(tmp_path / "a"))
    pack.run(tiny_coco.arguments(tmp_path / "b", boxes="instances"))
    for name in ("train-000000.tar", "test-000000.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["class_names"] == list(tiny_coco.names) and manifest["background_class"] is False


def test_features_are_class_vectors_plus_noise(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.boxes = {i: [(0, 0, 9, 9, 2)] * 200 for i in (1, 2, 3)}
    tiny_coco.write()
    pack.run(tiny_coco.arguments(tmp_path / "a", "--noise", "0.3", "--feature-dim", "32"))
    pack.run(tiny_coco.arguments(tmp_path / "b", "--noise", "0", "--feature-dim", "32"))
    vector = class_vector("tennis racket", 32)
    assert np.linalg.norm(vector) == pytest.approx(1.0) and abs(vector @ class_vector("cat", 32)) < 0.7
    clean = load(tmp_path / "b", "train")["000000000001"]["regions.npy"]
    np.testing.assert_allclose(clean, np.tile(vector, (200, 1)), atol=1e-3)
    noise = load(tmp_path / "a", "train")["000000000001"]["regions.npy"] - vector
    assert np.linalg.norm(noise, axis=1).mean() == pytest.approx(0.3, rel=0.05)
    assert abs(noise.mean(0)).max() < 0.02
    other = load(tmp_path / "a", "train")["000000000003"]["regions.npy"] - vector
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.1


def test_class_vector_of_a_name_never_changes() -> None:
    np.testing.assert_allclose(class_vector("person", 64)[:3], PERSON, rtol=1e-6)


def test_karpathy_split_with_and_without_captions_json(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.write().karpathy({1: "restval", 2: "test", 3: "train", 4: "val"})
    pack.run(tiny_coco.arguments(tmp_path / "a", split="karpathy.json"))
    assert list(load(tmp_path / "a", "train")) == ["000000000001", "000000000003"]
    assert list(load(tmp_path / "a", "dev")) == ["000000000004"]
    own = tiny_coco.arguments(tmp_path / "b", split="karpathy.json", boxes="instances")
    del own[1:3]  # --captions FILE
    pack.run(own)
    (caption,) = load(tmp_path / "b", "test")["000000000002"]["captions.json"]
    assert (caption["id"], caption["text"]) == ("102", "a dog, image 2")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("COCO_val2014_000000391895.jpg", "000000391895"),
        ("val2017/000000000139.jpg", "000000000139"),
        (139, "000000000139"),
        ("1000092795.jpg", "1000092795"),
        ("coco_val2014_000000000042.npz", "coco_val2014_000000000042"),
        ("odd name.v2.png", "odd_name_v2"),
    ],
)
def test_keys(name: str | int, key: str) -> None:
    assert image_key(name) == key


def test_a_box_may_leave_the_image_by_a_pixel(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.boxes[1] = [(-1, 0, 101, 80.5, 0)]
    pack.run(tiny_coco.write().arguments(tmp_path / "a"))
    assert load(tmp_path / "a", "train")["000000000001"]["boxes.npy"].tolist() == [[0, 0, 1, 1]]
    tiny_coco.boxes[1] = [(0, 0, 5, 5, 0), (3, 0, 102, 80, 0)]
    with pytest.raises(
        UserError, match=r"boxes.txt: image 0{11}1: box 1 \(3, 0, 102, 80\) lies outside the image of 100"
    ):
        pack.run(tiny_coco.write().arguments(tmp_path / "b"))


def test_images_without_boxes(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.write()
    with pytest.raises(UserError, match=r"image 0{11}4 has no regions .*use --empty-images whole or skip"):
        pack.run(tiny_coco.arguments(tmp_path / "a", "--empty-images", "error"))
    pack.run(tiny_coco.arguments(tmp_path / "a", "--empty-images", "skip"))
    assert list(load(tmp_path / "a", "test")) == ["000000000002"]


def test_long_captions(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    long = "A cat " + "and a dog " * 30 + "near a tree"
    tiny_coco.notes[0]["caption"] = long
    tiny_coco.write()
    with pytest.raises(
        UserError, match=r"captions.json: caption 10 of image 0{11}1 has 97 word pieces, the limit of split 'train' is 60"
    ):
        pack.run(tiny_coco.arguments(tmp_path / "a"))
    pack.run(tiny_coco.arguments(tmp_path / "b", "--long-captions", "drop"))
    assert [c["id"] for c in load(tmp_path / "b", "train")["000000000001"]["captions.json"]] == ["11"]
    pack.run(tiny_coco.arguments(tmp_path / "c", "--long-captions", "truncate"))
    cut = load(tmp_path / "c", "train")["000000000001"]["captions.json"][0]
    assert cut["text"] == " ".join(long.split()[:58]) and all(
        b <= len(cut["text"]) for s in cut["spans"] for _, b in s["chars"]
    )
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert (manifest["max_caption_pieces"], manifest["captions_truncated"]) == (60, 1)
    verify_corpus(tmp_path / "c")


def missing_image(tiny: TinyCoco) -> None:
    tiny.images.pop(0)


def no_caption(tiny: TinyCoco) -> None:
    tiny.notes = [note for note in tiny.notes if note["image_id"] != 2]


def twice(tiny: TinyCoco) -> None:
    tiny.split = {"train": [1, 2], "test": [2]}


def no_split(tiny: TinyCoco) -> None:
    tiny.split = [1, 2]


def blank(tiny: TinyCoco) -> None:
    tiny.notes[0]["caption"] = " \n"


def bad_class(tiny: TinyCoco) -> None:
    tiny.boxes[1] = [(0, 0, 5, 5, 3)]


def bad_row(tiny: TinyCoco) -> None:
    tiny.boxes[1] = [(0, 0, 5, 5)]


def backwards(tiny: TinyCoco) -> None:
    tiny.boxes[1] = [(50, 0, 5, 5, 1)]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (missing_image, r"captions.json: caption 10 belongs to image 1, which the file does not list; add the image"),
        (no_caption, r"split.json: image 0{11}2 of 'test' has no caption in .*captions.json; remove it"),
        (twice, r"split.json: image 0{11}2 is in 'train' and again in 'test'; keep it in one place"),
        (no_split, r"split.json is no split file"),
        (blank, r"captions.json: caption 10 of image 0{11}1 is empty; remove it"),
        (bad_class, r"boxes.txt, line 1: class 3 is not one of the 3 of --class-names"),
        (bad_row, r"boxes.txt, line 1: '0,0,5,5' is not x1,y1,x2,y2,class; correct"),
        (backwards, r"box 0 ends before it begins"),
    ],
)
def test_bad_input_gets_one_sentence(tiny_coco: TinyCoco, tmp_path: Path, spoil, match: str) -> None:
    spoil(tiny_coco)
    with pytest.raises(UserError, match=match) as error:
        pack.run(tiny_coco.write().arguments(tmp_path / "out"))
    assert "\n" not in str(error.value)


def test_broken_and_missing_files(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.write()
    (tiny_coco.folder / "captions.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"captions.json is not valid JSON .*copy it again"):
        pack.run(tiny_coco.arguments(tmp_path / "out"))
    (tiny_coco.folder / "captions.json").unlink()
    with pytest.raises(UserError, match=r"captions.json does not exist"):
        pack.run(tiny_coco.arguments(tmp_path / "out"))


def test_an_error_in_a_worker_process_is_the_same_sentence(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    tiny_coco.boxes[2] = [(0, 0, 500, 5, 0)]
    arguments = tiny_coco.write().arguments(tmp_path / "out", "--shard-size", "1")
    arguments[arguments.index("--workers") + 1] = "2"
    with pytest.raises(UserError, match=r"image 0{11}2: box 0 .* lies outside"):
        pack.run(arguments)


def test_changed_input_is_noticed(tiny_coco: TinyCoco, tmp_path: Path) -> None:
    pack.run(tiny_coco.write().arguments(tmp_path / "out"))
    tiny_coco.notes[0]["caption"] = "Another cat."
    with pytest.raises(UserError, match=r"other arguments or inputs \(inputs\)"):
        pack.run(tiny_coco.write().arguments(tmp_path / "out"))


def test_real_split_and_boxes(shared_data: Path, tmp_path: Path) -> None:
    """Counts that the data's own README states, on the dev split."""
    coco = shared_data / "coco_val2017"
    split = {"dev": json.loads((coco / "splits.json").read_text())["dev"][:150]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    pack.run(
        ["coco", "--captions", f"{coco}/captions_val2017.json", "--boxes", f"{coco}/boxes_val2017.txt", "--split",
         f"{tmp_path}/split.json", "--class-names", f"{coco}/coco.names", "--out", f"{tmp_path}/out", "--workers", "1",
         "--tokenizer", f"{shared_data}/bert_vocab/bert-base-uncased-vocab.txt", "--spans", "rules"]
    )  # fmt: skip
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["vocab_size"], manifest["num_classes"], manifest["splits"]["dev"]["images"]) == (30522, 80, 150)
    samples = load(tmp_path / "out", "dev")
    assert list(samples) == [f"{i:012d}" for i in split["dev"]]
    assert sum(len(s["captions.json"]) for s in samples.values()) == manifest["splits"]["dev"]["captions"] == 750
    covered = [bool(c["spans"]) for s in samples.values() for c in s["captions.json"]]
    assert np.mean(covered) > 0.99
