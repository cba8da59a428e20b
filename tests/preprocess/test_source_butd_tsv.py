"""Source `butd-tsv`: selection, soft labels and errors on a tiny TSV, and ten real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_inputs import load, tsv_line

from preprocess import pack
from preprocess.sources.butd_tsv import choose
from preprocess.verify import verify_corpus
from tagsds.errors import UserError

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
    np.testing.assert_allclose(sample["scores.npy"], np.linspace(0.95, 0.05, 15)[:12], atol=1e-3)
    np.testing.assert_allclose(sample["classes.npy"][1, 1], sample["scores.npy"][1], atol=1e-3)
    np.testing.assert_allclose(sample["classes.npy"].astype(float).sum(1), 1, atol=5e-3)
    verify_corpus(tmp_path / "out")


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
    with pytest.raises(UserError, match=r"class 11 is not below --soft-classes 10; raise it"):
        pack.run([*arguments, "--out", f"{tmp_path}/out", "--soft-classes", "10"])


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
    pack.run([*base, "--out", f"{tmp_path}/a", "--soft-classes", "1600"])
    pack.run([*base, "--out", f"{tmp_path}/b", "--select", "fixed36"])
    chosen, fixed = load(tmp_path / "a", "train"), load(tmp_path / "b", "train")
    assert len(chosen) == len(fixed) == 10
    for key, sample in chosen.items():
        n = len(sample["scores.npy"])
        assert 10 <= n <= 36 and sample["regions.npy"].shape == (n, 2048) and sample["classes.npy"].shape == (n, 1600)
        assert (np.diff(sample["scores.npy"].astype(float)) <= 0).all()
        assert (sample["scores.npy"][10:] > 0.199).all()
        assert fixed[key]["regions.npy"].shape == (36, 2048)
        np.testing.assert_array_equal(fixed[key]["regions.npy"][:n], sample["regions.npy"])
    verify_corpus(tmp_path / "a")
