"""tagsds-extract, kind grid: features against plain forwards, boxes of patches against numbers worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tiny_inputs import load
from tiny_vision import PROCESSORS, TinyPictures, save_model

from preprocess import extract
from preprocess.extractors import source as source_module
from preprocess.extractors.source import ExtractSource
from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank
from tagsds.vision.grid import boxes_of_cells, windows
from tagsds.vision.regions import Regions

PREFIX = {"vit": 1, "clip": 1, "dinov2": 1, "registers": 4}  # [CLS], and three registers


def make_source(tiny: TinyPictures, model: Path, *more: str) -> ExtractSource:
    return extract.make_source(extract.parse(tiny.arguments(model, *more)))


def regions_of(source: ExtractSource, monkeypatch: pytest.MonkeyPatch, split: str = "train") -> dict[str, Regions]:
    """What a shard of a whole split would hold, in float32."""
    monkeypatch.setattr(source_module, "_halved", lambda regions: regions)
    source.prepare(split, source.splits()[split])
    return {key: regions for key, (regions, _) in source.ready.items()}


def plain_patches(model: torch.nn.Module, name: str, picture: Image.Image) -> np.ndarray:
    """[patches, D] of one picture alone, by the library's own calls."""
    pixels = PROCESSORS[name]()(images=picture, return_tensors="pt")
    tower = model.vision_model if name == "clip" else model
    with torch.no_grad():
        return tower(**pixels).last_hidden_state[0, PREFIX[name] :].numpy()


@pytest.mark.parametrize("name", list(PREFIX))
def test_features_are_those_of_a_plain_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tiny, model = TinyPictures(tmp_path), save_model(tmp_path / name, name)
    source = make_source(tiny, tmp_path / name)
    assert source.name == "grid" and source.feature_dim == 16 and source.num_classes == 0
    found = regions_of(source, monkeypatch)
    assert len(found) == 5
    for number in tiny.split["train"]:
        expected = plain_patches(model, name, tiny.picture(number))
        regions = found[f"{number:012d}"]
        np.testing.assert_allclose(regions.features, expected, rtol=1e-5, atol=1e-5)
        assert np.ptp(expected, axis=0).min() > 1e-2  # patches differ, so that their order is tested too
        assert regions.boxes.shape == (len(expected), 4) and regions.scores is None and regions.classes is None


def test_a_checkpoint_of_the_vision_tower_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both layouts of CLIP on disk give the same features."""
    tiny, model = TinyPictures(tmp_path), save_model(tmp_path / "clip", "clip")
    model.vision_model.save_pretrained(tmp_path / "tower")
    PROCESSORS["clip"]().save_pretrained(tmp_path / "tower")
    whole, tower = (regions_of(make_source(tiny, tmp_path / folder), monkeypatch) for folder in ("clip", "tower"))
    for key, regions in whole.items():
        np.testing.assert_array_equal(regions.features, tower[key].features)


@pytest.mark.parametrize(
    ("name", "number", "first", "last"),
    [
        # 60 x 40 -> 48 x 32, the middle 32 x 32 of it from x = 8
        ("clip", 1, (8 / 48, 0, 16 / 48, 8 / 32), (32 / 48, 24 / 32, 40 / 48, 1)),
        # 40 x 60 -> 32 x 48, from y = 8
        ("clip", 2, (0, 8 / 48, 8 / 32, 16 / 48), (24 / 32, 32 / 48, 1, 40 / 48)),
        # 60 x 40 -> 72 x 48, the middle 40 x 40 of it from (16, 4)
        ("dinov2", 1, (16 / 72, 4 / 48, 24 / 72, 12 / 48), (48 / 72, 36 / 48, 56 / 72, 44 / 48)),
        # 61 x 40 -> 73 x 48, from (16, 4): 33 / 2 is rounded down
        ("dinov2", 5, (16 / 73, 4 / 48, 24 / 73, 12 / 48), (48 / 73, 36 / 48, 56 / 73, 44 / 48)),
        # squashed to 32 x 32, no crop
        ("vit", 1, (0, 0, 1 / 4, 1 / 4), (3 / 4, 3 / 4, 1, 1)),
    ],
)
def test_the_box_of_a_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, first: tuple, last: tuple
) -> None:
    save_model(tmp_path / name, name)
    tiny = TinyPictures(tmp_path, {"train": [number]})
    boxes = regions_of(make_source(tiny, tmp_path / name), monkeypatch)[f"{number:012d}"].boxes
    np.testing.assert_allclose(boxes[0], first, atol=1e-6)
    np.testing.assert_allclose(boxes[-1], last, atol=1e-6)
    side = round(len(boxes) ** 0.5)
    assert boxes[1, 0] == boxes[0, 2] and boxes[1, 1] == boxes[0, 1]  # row by row
    assert boxes[side, 0] == boxes[0, 0] and boxes[side, 1] == boxes[0, 3]


@pytest.mark.parametrize("name", ["clip", "dinov2", "vit"])
def test_boxes_lie_where_the_pixels_came_from(tmp_path: Path, name: str) -> None:
    """Red grows with x and green with y: the mean colour of a processed patch tells where its middle was."""
    x, y = np.meshgrid((np.arange(300) + 0.5) / 300, (np.arange(200) + 0.5) / 200)
    ramp = Image.fromarray((255 * np.stack([x, y, 0 * x], axis=-1)).round().astype(np.uint8), "RGB")
    save_model(tmp_path / name, name)
    tiny = TinyPictures(tmp_path, {"train": [3]})
    ramp.save(tmp_path / "pictures" / f"{3:012d}.png")
    source = make_source(tiny, tmp_path / name)
    pixels = source.pixels(f"{3:012d}")
    colour = pixels.values * torch.tensor(source.vision.processor.image_std)[:, None, None]
    colour = colour + torch.tensor(source.vision.processor.image_mean)[:, None, None]
    means = torch.nn.functional.avg_pool2d(colour[:2], 8).flatten(1).T.numpy()  # [patches, (x, y)]
    boxes = source.extract([pixels])[0].boxes
    np.testing.assert_allclose((boxes[:, :2] + boxes[:, 2:]) / 2, means, atol=0.012)


def test_pooling_averages_patches_and_joins_their_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, model = TinyPictures(tmp_path), save_model(tmp_path / "clip", "clip")
    pooled = regions_of(make_source(tiny, tmp_path / "clip", "--pool", "2"), monkeypatch)
    for number in tiny.split["train"]:
        grid = plain_patches(model, "clip", tiny.picture(number)).reshape(4, 4, 16)
        cells = [grid[:2, :2], grid[:2, 2:], grid[2:, :2], grid[2:, 2:]]
        expected = np.stack([cell.reshape(4, 16).mean(0) for cell in cells])
        np.testing.assert_allclose(pooled[f"{number:012d}"].features, expected, rtol=1e-5, atol=1e-5)
    # 48 x 32 with the crop from x = 8: the second cell begins at 8 + 16
    np.testing.assert_allclose(pooled[f"{1:012d}"].boxes[1], (24 / 48, 0, 40 / 48, 16 / 32), atol=1e-6)


def test_pooling_a_grid_that_is_no_multiple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 x 5 patches in 2 x 2 cells: cells of 3 x 3 patches that share the middle row and column."""
    np.testing.assert_array_equal(windows(5, 5, (2, 2)), [[0, 0, 3, 3], [2, 0, 5, 3], [0, 2, 3, 5], [2, 2, 5, 5]])
    tiny, model = TinyPictures(tmp_path, {"train": [1]}), save_model(tmp_path / "dinov2", "dinov2")
    pooled = regions_of(make_source(tiny, tmp_path / "dinov2", "--pool", "2"), monkeypatch)[f"{1:012d}"]
    grid = plain_patches(model, "dinov2", tiny.picture(1)).reshape(5, 5, 16)
    np.testing.assert_allclose(pooled.features[2], grid[2:, :3].reshape(9, 16).mean(0), rtol=1e-5, atol=1e-5)
    assert len(regions_of(make_source(tiny, tmp_path / "dinov2", "--pool", "9"), monkeypatch)[f"{1:012d}"].features) == 25


def test_boxes_never_leave_the_picture() -> None:
    """Rounding of the corner may move a crop of the whole width by half a pixel."""
    boxes = boxes_of_cells(np.array([[-1.0, 0, 4, 4], [4, 4, 8.5, 8]]), (8, 8), (8, 8))
    np.testing.assert_allclose(boxes, [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])


def test_pictures_without_a_crop_keep_their_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DINOv2 takes every size: a wide picture has a wide grid that covers all of it but the rest of the last patch."""
    save_model(tmp_path / "dinov2", "dinov2")
    hf.BitImageProcessorPil(size={"shortest_edge": 48}, do_center_crop=False).save_pretrained(tmp_path / "dinov2")
    found = regions_of(make_source(TinyPictures(tmp_path), tmp_path / "dinov2"), monkeypatch)
    assert {int(key): len(r.features) for key, r in found.items()} == {5: 54, 1: 54, 2: 54, 3: 36, 4: 54}
    np.testing.assert_allclose(found[f"{1:012d}"].boxes[-1], (64 / 72, 40 / 48, 1, 1), atol=1e-6)
    np.testing.assert_allclose(found[f"{5:012d}"].boxes[-1], (64 / 73, 40 / 48, 72 / 73, 1), atol=1e-6)


def test_the_shards_hold_it(tmp_path: Path) -> None:
    """What is written can be verified and loaded, and is the plain forward to the precision of float16."""
    tiny, model = TinyPictures(tmp_path), save_model(tmp_path / "vit", "vit")
    extract.run(tiny.arguments(tmp_path / "vit"))
    assert "train 5 images, 10 captions, 80 regions; test 2 images" in verify_corpus(tmp_path / "out")
    samples = load(tmp_path / "out", "train")
    assert list(samples) == [f"{number:012d}" for number in tiny.split["train"]]  # the order of the split file
    for number in tiny.split["train"]:
        sample = samples[f"{number:012d}"]
        expected = plain_patches(model, "vit", tiny.picture(number))
        np.testing.assert_allclose(sample["regions.npy"], expected, rtol=2e-3, atol=1e-3)
        assert set(sample) == {"regions.npy", "boxes.npy", "captions.json"}
        assert [c["text"] for c in sample["captions.json"]] == [f"a red dog , image {number}", f"a big dog , image {number}"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["max_regions"] == 16 and manifest["num_classes"] == 0 and manifest["boxes"] is True
    assert manifest["made_by"]["command"] == "tagsds-extract" and manifest["made_by"]["source"] == "grid"
    bank, _ = load_bank(tmp_path / "out", "test")
    assert bank.keys == [f"{7:012d}", f"{6:012d}"] and bank.regions.values.shape == (32, 16)
    np.testing.assert_allclose(bank.boxes[0].numpy(), (0, 0, 0.25, 0.25))


def test_bf16_is_close_and_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TinyPictures(tmp_path)
    save_model(tmp_path / "vit", "vit")
    exact, rough = (regions_of(make_source(tiny, tmp_path / "vit", *d), monkeypatch) for d in ([], ["--dtype", "bf16"]))
    for key in exact:
        difference = np.abs(exact[key].features - rough[key].features)
        assert 0 < difference.max() < 0.1 and rough[key].features.dtype == np.float32
