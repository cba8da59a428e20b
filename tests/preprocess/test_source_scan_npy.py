"""Source `scan-npy`: arrays with and without repeated images, packed and read back equal, down to a score without boxes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_inputs import contents, load
from torch.nn import functional

from preprocess import pack
from preprocess.verify import verify_corpus
from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.uniter import Layout

COLOURS = ("red", "blue", "green", "black", "white")


def write_split(folder: Path, split: str, images: int, repeat: bool = False, seed: int = 0, width: int = 8) -> np.ndarray:
    """Features [images, 4, width] float32; five captions an image."""
    features = np.random.default_rng(seed).standard_normal((images, 4, width)).astype(np.float32)
    np.save(folder / f"{split}_ims.npy", features.repeat(5, axis=0) if repeat else features)
    lines = [f"a {colour} cat sits on mat {image} .\n" for image in range(images) for colour in COLOURS]
    (folder / f"{split}_caps.txt").write_text("".join(lines))
    return features


def arguments(folder: Path, *more: str, out: str = "out") -> list[str]:
    return ["scan-npy", "--folder", str(folder), "--out", str(folder / out), "--workers", "1", "--spans", "rules", *more]


@pytest.mark.parametrize("repeat", [False, True])
def test_reads_back_equal(tmp_path: Path, repeat: bool) -> None:
    features = {split: write_split(tmp_path, split, n, repeat, n) for split, n in (("train", 6), ("test", 3))}
    pack.run(arguments(tmp_path))
    for split, array in features.items():
        samples = load(tmp_path / "out", split)
        assert list(samples) == [f"{split}-{i:06d}" for i in range(len(array))]
        for i, sample in enumerate(samples.values()):
            np.testing.assert_array_equal(sample["regions.npy"], array[i].astype(np.float16))
            assert set(sample) == {"regions.npy", "captions.json"}
            captions = sample["captions.json"]
            assert [c["text"] for c in captions] == [f"a {colour} cat sits on mat {i} ." for colour in COLOURS]
            assert [c["id"] for c in captions] == [f"{split}-{5 * i + k}" for k in range(5)]
            spans = [(s["kind"], captions[0]["text"][a:b]) for s in captions[0]["spans"] for a, b in s["chars"]][:3]
            assert spans == [("attribute", "red"), ("object", "cat"), ("relation", "sits on")]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["boxes"] is False and manifest["imported_ids"] is False and manifest["num_classes"] == 0
    assert manifest["background_class"] is False
    assert manifest["splits"]["train"]["captions"] == 30 and manifest["feature_dim"] == 8
    assert manifest["made_by"]["arguments"]["rows_per_image"] == dict.fromkeys(("train", "test"), 5 if repeat else 1)
    assert "is sound" in verify_corpus(tmp_path / "out")


def encoder(vocab_size: int) -> UniterModel:
    torch.manual_seed(0)
    config = UniterConfig(
        vocab_size=vocab_size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        region_dim=8, num_region_classes=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return UniterModel(config)


def test_the_encoder_takes_images_without_boxes(tmp_path: Path) -> None:
    """Every region has the whole image as its box: one constant for all, and gradients of ordinary size."""
    write_split(tmp_path, "train", 6)
    pack.run(arguments(tmp_path))
    bank, manifest = load_bank(tmp_path / "out", "train")
    assert manifest.boxes is False and bank.classes is None
    assert bank.boxes.dtype == torch.float32 and bank.boxes.tolist() == [[0, 0, 1, 1]] * 24
    images = bank.image_table(torch.arange(6))
    assert images.geometry.tolist() == [[0, 0, 1, 1, 1, 1, 1]] * 24
    model = encoder(manifest.vocab_size)
    pairs = Pairs(bank.text_table(torch.arange(6)), images, torch.arange(6), torch.arange(6))

    branch = model.image_embedding
    with torch.no_grad():
        whole = functional.layer_norm(branch.box.weight @ images.geometry[0] + branch.box.bias, (16,), eps=1e-12)
        feature = functional.layer_norm(branch.feature(bank.regions.values.float()), (16,), eps=1e-12)
        expected = functional.layer_norm(feature + whole, (16,), eps=1e-12)
        torch.testing.assert_close(branch(images, torch.zeros(16)), expected)
        backwards = torch.arange(24).view(6, 4).flip(1).flatten()  # the regions of an image in reverse order
        other = Pairs(pairs.texts, Images(Ragged(images.regions.values[backwards], images.lengths), images.geometry[backwards]),
                      pairs.text_of_pair, pairs.image_of_pair)  # fmt: skip
        cls = Layout.of(pairs).starts[:-1]
        torch.testing.assert_close(model(other, cls), model(pairs, cls), rtol=1e-4, atol=1e-5)

    def gradient(geometry: torch.Tensor) -> float:
        model.zero_grad()
        table = Images(images.regions, geometry)
        model(Pairs(pairs.texts, table, pairs.text_of_pair, pairs.image_of_pair))[:, 0].sum().backward()
        return float(branch.box.bias.grad.norm() / branch.feature.bias.grad.norm())

    assert gradient(images.geometry) < 100 < 1000 < gradient(torch.zeros_like(images.geometry))


def test_files_by_name_and_other_counts(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 2)
    base = ["scan-npy", "--workers", "1", "--spans", "rules", "--ims", f"testall={tmp_path}/train_ims.npy"]
    base += ["--caps", f"testall={tmp_path}/train_caps.txt"]
    pack.run([*base, "--out", f"{tmp_path}/a"])
    assert list(load(tmp_path / "a", "testall")) == ["testall-000000", "testall-000001"]
    np.save(tmp_path / "train_ims.npy", np.random.default_rng(0).standard_normal((10, 8)).astype(">f8"))  # one region each
    pack.run([*base, "--out", f"{tmp_path}/b", "--captions-per-image", "1"])
    samples = load(tmp_path / "b", "testall")
    assert len(samples) == 10 and samples["testall-000003"]["regions.npy"].shape == (1, 8)
    assert [c["text"] for c in samples["testall-000003"]["captions.json"]] == ["a black cat sits on mat 0 ."]
    verify_corpus(tmp_path / "b")


def test_workers_change_no_byte(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 5, repeat=True)
    pack.run(arguments(tmp_path, "--shard-size", "2", out="one"))
    pack.run([*arguments(tmp_path, "--shard-size", "2", out="two"), "--workers", "2"])
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two and len([name for name in one if name.endswith(".tar")]) == 3


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("layout", ["object array", "bare pickle"])
def test_no_pickle_is_ever_loaded(tmp_path: Path, layout: str) -> None:
    write_split(tmp_path, "train", 2)
    path, marker = tmp_path / "train_ims.npy", tmp_path / "marker"
    if layout == "object array":
        np.save(path, np.array([Evil(marker), Evil(marker)], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(UserError, match=r"train_ims.npy is no (plain|whole) npy array .*again.$"):
        pack.run(arguments(tmp_path))
    assert not marker.exists()


def cut(folder: Path) -> None:
    data = (folder / "train_ims.npy").read_bytes()
    (folder / "train_ims.npy").write_bytes(data[:-20])


def empty(folder: Path) -> None:
    (folder / "train_ims.npy").write_bytes(b"")


def fewer_captions(folder: Path) -> None:
    lines = (folder / "train_caps.txt").read_text().splitlines(keepends=True)
    (folder / "train_caps.txt").write_text("".join(lines[:-1]))


def blank_caption(folder: Path) -> None:
    lines = (folder / "train_caps.txt").read_text().splitlines()
    (folder / "train_caps.txt").write_text("\n".join([*lines[:3], " ", *lines[4:]]))


def not_repeated(folder: Path) -> None:
    np.save(folder / "train_ims.npy", np.random.default_rng(0).standard_normal((15, 4, 8)))


def not_repeated_inside(folder: Path) -> None:
    array = np.random.default_rng(0).standard_normal((3, 4, 8)).repeat(5, axis=0)
    array[7, 0, 0] += 1
    np.save(folder / "train_ims.npy", array)


def nan(folder: Path) -> None:
    array = np.load(folder / "train_ims.npy")
    array[1, 2, 3] = np.nan
    np.save(folder / "train_ims.npy", array)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (cut, r"train_ims.npy is no whole npy array .*copy it again"),
        (empty, r"train_ims.npy is no whole npy array .*copy it again"),
        (fewer_captions, r"has 3 rows and .*train_caps.txt 14 captions, which is neither 5 captions a row nor"),
        (blank_caption, r"train_caps.txt: caption train-3 of image train-000000 is empty"),
        (not_repeated, r"rows 0 to 4 are not one image repeated; use --captions-per-image 1"),
        (not_repeated_inside, r"rows 5 to 9 are not one image repeated"),
        (nan, r"train_ims.npy: image train-000001: features of region 2 are NaN"),
        (lambda f: np.save(f / "train_ims.npy", np.zeros((3, 4, 8), dtype=np.int64)), r"holds int64 \[3, 4, 8\], not float"),
        (lambda f: write_split(f, "dev", 1, width=9) is None, r"the features differ in width .*dev_ims.npy \[1, 4, 9\]"),
        (lambda f: (f / "train_caps.txt").write_bytes(b"\xff\xfe"), r"train_caps.txt is no UTF-8 text"),
        (lambda f: (f / "train_caps.txt").unlink(), r"train_caps.txt does not exist"),
        (lambda f: (f / "train_ims.npy").unlink(), r"holds none of train_ims.npy, dev_ims.npy, test_ims.npy"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path: Path, spoil, match: str) -> None:
    write_split(tmp_path, "train", 3)
    spoil(tmp_path)
    with pytest.raises(UserError, match=match) as error:
        pack.run(arguments(tmp_path))
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_ims_and_caps_go_together(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 2)
    with pytest.raises(UserError, match=r"must name the same splits"):
        pack.run(["scan-npy", "--ims", f"train={tmp_path}/train_ims.npy", "--out", f"{tmp_path}/x"])
