"""Source `butd-tsv`: selection, soft labels and errors on a tiny TSV, and ten real images."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import load, tsv_line

from preprocess import pack
from preprocess.sources.butd_tsv import choose, soft_labels
from preprocess.verify import verify_corpus
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest

NAMES = ("COCO_train2014_000000000007", "COCO_train2014_000000000009")


def confidences(n: int, high: int) -> np.ndarray:
    """`high` values above 0.2, in no order."""
    values = np.concatenate([np.linspace(0.9, 0.21, high), np.linspace(0.19, 0.01, n - high)])
    return np.random.default_rng(0).permutation(values).astype(np.float32)


@pytest.mark.parametrize(("n", "high", "kept"), [(36, 20, 20), (36, 3, 10), (150, 120, 100), (5, 0, 5)])
def test_choice_by_confidence(n: int, high: int, kept: int) -> None:
    confidence = confidences(n, high)
    keep = choose(confidence, n, "confidence")
    assert len(keep) == kept
    np.testing.assert_allclose(confidence[keep], np.sort(confidence)[::-1][:kept])


def test_choice_of_36() -> None:
    confidence = confidences(60, 50)
    np.testing.assert_allclose(confidence[choose(confidence, 60, "fixed36")], np.sort(confidence)[::-1][:36])
    assert choose(None, 40, "fixed36").tolist() == list(range(36))


def write_input(folder: Path, lines: list[bytes]) -> list[str]:
    """TSV, captions from a Karpathy split; the arguments of the command but --out."""
    (folder / "x.tsv").write_bytes(b"".join(lines))
    images = [
        {
            "cocoid": int(name[-12:]),
            "filename": f"{name}.jpg",
            "split": "train",
            "sentences": [{"raw": "A cat.", "sentid": 1}],
        }
        for name in NAMES
    ]
    (folder / "k.json").write_text(json.dumps({"images": images}))
    return ["butd-tsv", "--tsv", f"{folder}/x.tsv", "--split", f"{folder}/k.json", "--workers", "1", "--spans", "rules"]


def good(name: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return tsv_line(name, np.linspace(0.95, 0.05, 15), rng.standard_normal((15, 8)))


def test_a_tiny_tsv(tmp_path: Path) -> None:
    extra = good("COCO_train2014_000000000555", 3)  # not in the split: ignored
    arguments = write_input(tmp_path, [extra, good("9", 1), good(NAMES[0], 2)])  # a bare id works as well
    pack.run([*arguments, "--out", f"{tmp_path}/out", "--soft-classes", "20"])
    samples = load(tmp_path / "out", "train")
    assert list(samples) == ["000000000007", "000000000009"]
    sample = samples["000000000007"]
    assert sample["regions.npy"].shape == (12, 8)  # 12 of 0.95, 0.886, .. 0.05 are above 0.2
    expected = np.random.default_rng(2).standard_normal((15, 8))[:12].astype(np.float16)
    np.testing.assert_allclose(sample["regions.npy"], expected, rtol=2e-3)
    np.testing.assert_allclose(sample["boxes.npy"][0], [0.1, 0.1, 0.6, 0.9], rtol=1e-6)
    confidence = np.linspace(0.95, 0.05, 15)[1]
    np.testing.assert_allclose(sample["classes.npy"][1, 2], confidence, atol=1e-3)  # class 1 after background
    np.testing.assert_allclose(sample["classes.npy"].astype(float).sum(1), 1, atol=5e-3)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.num_classes, manifest.background_class, manifest.class_names) == (20, True, [])
    verify_corpus(tmp_path / "out")


def test_soft_labels_by_hand() -> None:
    """Classes 0 and 3 of four are columns 1 and 4 of five; 0.6 leaves 0.4 to share among four columns, the background too."""
    labels = soft_labels(np.array([0, 3]), np.array([0.6, 1.0], dtype=np.float32), 5, "here")
    np.testing.assert_allclose(labels, [[0.1, 0.6, 0.1, 0.1, 0.1], [0, 0, 0, 0, 1]], atol=1e-7)
    with pytest.raises(UserError, match=r"here: class 4 is column 5 after the background, --soft-classes 5 has columns 0 to 4"):
        soft_labels(np.array([0, 4]), np.array([0.6, 0.5]), 5, "here")
    with pytest.raises(UserError, match=r"here: class -1 is negative"):
        soft_labels(np.array([-1]), np.array([0.6]), 5, "here")


def test_names_of_the_classes_begin_after_the_background(tmp_path: Path) -> None:
    arguments = write_input(tmp_path, [good(NAMES[0], 1), good(NAMES[1], 2)])
    (tmp_path / "names.txt").write_text("\n".join(f"thing {i},synonym" for i in range(15)) + "\n")
    named = [*arguments, "--class-names", f"{tmp_path}/names.txt"]
    with pytest.raises(UserError, match=r"names 15 classes, which with the background are 16 columns, and --soft-classes says 15"):
        pack.run([*named, "--out", f"{tmp_path}/a", "--soft-classes", "15"])
    pack.run([*named, "--out", f"{tmp_path}/b", "--soft-classes", "16"])
    manifest = read_manifest(tmp_path / "b")
    assert manifest.class_names == ["__background__", *(f"thing {i}" for i in range(15))]
    best = load(tmp_path / "b", "train")["000000000007"]["classes.npy"].argmax(1)
    assert [manifest.class_names[k] for k in best[:3]] == ["thing 0", "thing 1", "thing 2"]  # box i is of class i
    verify_corpus(tmp_path / "b")


def test_verify_compares_names_and_background_with_the_columns(tmp_path: Path) -> None:
    arguments = write_input(tmp_path, [good(NAMES[0], 1), good(NAMES[1], 2)])
    pack.run([*arguments, "--out", f"{tmp_path}/out"])
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["background_class"] is False and manifest["num_classes"] == 0
    path.write_text(json.dumps(manifest | {"background_class": True}))
    with pytest.raises(UserError, match=r"manifest.json has a background_class and no classes"):
        verify_corpus(tmp_path / "out")
    path.write_text(json.dumps(manifest | {"class_names": ["cat"]}))
    with pytest.raises(UserError, match=r"manifest.json names 1 classes and says num_classes 0"):
        verify_corpus(tmp_path / "out")


@pytest.mark.parametrize(("classes", "background"), [(1601, True), (1600, False), (80, False), (0, False)])
def test_older_manifests_do_not_say_whether_there_is_a_background(tmp_path: Path, classes: int, background: bool) -> None:
    arguments = write_input(tmp_path, [good(NAMES[0], 1), good(NAMES[1], 2)])
    pack.run([*arguments, "--out", f"{tmp_path}/out"])
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"num_classes": classes}
    del manifest["background_class"]
    path.write_text(json.dumps(manifest))
    assert read_manifest(tmp_path / "out").background_class is background


def nan_features() -> bytes:
    features = np.ones((15, 8), dtype=np.float32)
    features[3, 2] = np.nan
    return tsv_line(NAMES[0], np.linspace(0.95, 0.05, 15), features)


def outside() -> bytes:
    boxes = np.tile(np.array([[0, 0, 50, 50]], dtype=np.float32), (15, 1))
    boxes[2] = (0, 0, 103, 50)
    return tsv_line(NAMES[0], np.linspace(0.95, 0.05, 15), np.ones((15, 8)), boxes)


def cut() -> bytes:
    return good(NAMES[0], 2)[:-41] + b"\n"


def narrow() -> bytes:
    return tsv_line(NAMES[0], np.linspace(0.95, 0.05, 15), np.ones((15, 4)))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        (nan_features, r"x.tsv: image 0{11}7: features of region 3 are NaN .*extract the image again"),
        (outside, r"x.tsv: image 0{11}7: box 2 \(0, 0, 103, 50\) lies outside the image of 100 x 50 pixels"),
        (cut, r"x.tsv: the line of image 7 is damaged .*extract it again"),
        (narrow, r"features have shape \[12, 4\], not \[12, 8\]|features have shape \[12, 8\], not \[12, 4\]"),
        (lambda: tsv_line(NAMES[0], np.zeros(0), np.zeros((0, 8))), r"x.tsv: image 0{11}7 has no regions"),
        (lambda: b"", r"image 0{11}7 of split 'train' is not in .*x.tsv; give its file too or remove it"),
        (lambda: b"abc\t1\n", r"x.tsv, line 2 has 2 columns where 6 or 10 are expected"),
        (lambda: good(NAMES[1], 1), r"x.tsv, line 2: image 9 is there twice"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path: Path, line, match: str) -> None:
    arguments = write_input(tmp_path, [good(NAMES[1], 1), line()])
    with pytest.raises(UserError, match=match):
        pack.run([*arguments, "--out", f"{tmp_path}/out"])


def test_soft_classes_too_few(tmp_path: Path) -> None:
    arguments = write_input(tmp_path, [good(NAMES[0], 1), good(NAMES[1], 2)])
    with pytest.raises(UserError, match=r"class 11 is column 12 after the background, --soft-classes 12 has .*; raise it"):
        pack.run([*arguments, "--out", f"{tmp_path}/out", "--soft-classes", "12"])
    pack.run([*arguments, "--out", f"{tmp_path}/out", "--overwrite", "--soft-classes", "13"])


def test_six_columns_have_no_confidence(tmp_path: Path) -> None:
    lines = []
    for name in NAMES:
        f = good(name, 1).rstrip(b"\n").split(b"\t")
        lines.append(b"\t".join([f[0], f[2], f[1], f[7], f[8], f[9]]) + b"\n")
    arguments = write_input(tmp_path, lines)
    with pytest.raises(UserError, match=r"has no confidences \(6 columns\); use --select fixed36"):
        pack.run([*arguments, "--out", f"{tmp_path}/a"])
    pack.run([*arguments, "--out", f"{tmp_path}/b", "--select", "fixed36"])
    sample = load(tmp_path / "b", "train")["000000000007"]
    assert sample["regions.npy"].shape == (15, 8) and "scores.npy" not in sample
    np.testing.assert_allclose(sample["boxes.npy"][0], [0.1, 0.1, 0.6, 0.9], rtol=1e-6)


def test_ten_real_images(shared_data: Path, tmp_path: Path) -> None:
    tsv = shared_data / "butd_regions" / "train2014_obj36.tsv"
    names = [line.split(b"\t", 1)[0].decode() for line in tsv.read_bytes().splitlines()]
    images = [
        {
            "cocoid": int(n[-12:]),
            "filename": f"{n}.jpg",
            "split": "train",
            "sentences": [{"raw": "A street.", "sentid": i}],
        }
        for i, n in enumerate(names)
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    base = ["butd-tsv", "--tsv", str(tsv), "--split", f"{tmp_path}/k.json", "--workers", "1"]
    names = shared_data / "butd_regions" / "objects_vocab.txt"
    pack.run([*base, "--out", f"{tmp_path}/a", "--soft-classes", "1601", "--class-names", str(names)])
    pack.run([*base, "--out", f"{tmp_path}/b", "--select", "fixed36"])
    chosen, fixed = load(tmp_path / "a", "train"), load(tmp_path / "b", "train")
    assert len(chosen) == len(fixed) == 10
    for key, sample in chosen.items():
        n, confidence = len(sample["regions.npy"]), sample["classes.npy"].max(1).astype(float)
        assert 10 <= n <= 36 and sample["regions.npy"].shape == (n, 2048) and sample["classes.npy"].shape == (n, 1601)
        assert (np.diff(confidence) <= 0).all()
        assert (confidence[10:] > 0.199).all()
        assert fixed[key]["regions.npy"].shape == (36, 2048)
        np.testing.assert_array_equal(fixed[key]["regions.npy"][:n], sample["regions.npy"])
    verify_corpus(tmp_path / "a")
    manifest = read_manifest(tmp_path / "a")
    assert manifest.background_class and manifest.class_names[0] == "__background__" and len(manifest.class_names) == 1601
    for line in tsv.read_bytes().splitlines():  # read afresh: the class of the file is the name of the column
        fields = line.split(b"\t")
        ids, confidence = (np.frombuffer(base64.b64decode(fields[c]), dtype) for c, dtype in ((3, np.int64), (4, np.float32)))
        best = int(confidence.argmax())
        labels = chosen[fields[0].decode()[-12:]]["classes.npy"][0].astype(np.float64)
        assert labels.argmax() == ids[best] + 1
        assert manifest.class_names[labels.argmax()] == names.read_text().splitlines()[ids[best]].split(",")[0]
        np.testing.assert_allclose(labels.max(), confidence[best], atol=1e-3)
        np.testing.assert_allclose(labels[0], (1 - confidence[best]) / 1600, rtol=2e-2, atol=1e-6)
