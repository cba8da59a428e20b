"""tagsds-extract: regions are the model's own states, boxes lie where they came from, and a killed run ends the same."""

from __future__ import annotations

import shutil
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection

from preprocess import build, extract
from preprocess.extractors import detector, grid
from preprocess.extractors.pictures import open_picture
from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank, read_manifest, read_samples
from tagsds.errors import UserError
from tests.preprocess import vision_models as tiny

GRIDS = ["vit", "clip", "dinov2", "dinov2-registers"]
DETECTORS = ["detr", "conditional-detr", "yolos"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.write_model(folder / name, name) for name in tiny.MODELS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "pictures"
    return folder, tiny.write_pictures(folder)


def arguments(models, pictures, tmp_path, name, *more):
    split = tiny.write_split(tmp_path / "split.json", ["a", "b", "c", "d"], ["e"])
    return ["--pictures", str(pictures[0]), "--model", str(models[name]), "--split", str(split), "--out", str(tmp_path / "out"),
            "--shard-size", "3", "--spans", "rules", *map(str, more)]  # fmt: skip


def packed(models, pictures, tmp_path, name, *more):
    """Raw samples by key."""
    extract.run(arguments(models, pictures, tmp_path, name, *more))
    out = tmp_path / "out"
    verify_corpus(out)
    samples = read_samples(sorted(out.glob("*.tar")))
    return {sample["__key__"]: sample for sample in samples}


def loaded(kind, folder, path):
    """Processor, model and one picture, as a user would run them by hand."""
    processor = AutoImageProcessor.from_pretrained(folder)
    auto = AutoModelForObjectDetection if kind == "detector" else AutoModel
    with Image.open(path) as picture:
        pixels = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
    return auto.from_pretrained(folder).eval(), pixels


def array(sample, name):
    return np.load(BytesIO(sample[name])).astype(np.float32)


@pytest.mark.parametrize("name", GRIDS)
def test_regions_are_the_last_states_of_the_patches(models, pictures, tmp_path, name):
    samples = packed(models, pictures, tmp_path, name)
    assert set(samples) == set(tiny.SIZES)
    skipped = {"vit": 1, "clip": 1, "dinov2": 1, "dinov2-registers": 4}[name]  # class token, registers
    for key, sample in samples.items():
        model, pixels = loaded("grid", models[name], pictures[1][key])
        with torch.no_grad():
            states = getattr(model, "vision_model", model)(pixel_values=pixels).last_hidden_state[0, skipped:]
        assert states.shape == (16, tiny.WIDTH)
        np.testing.assert_allclose(array(sample, "regions.npy"), states.numpy(), atol=2e-3, rtol=1e-3)  # half precision on disk
        assert array(sample, "boxes.npy").shape == (16, 4) and "scores.npy" not in sample
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.feature_dim, manifest.num_classes, manifest.max_regions) == (tiny.WIDTH, 0, 16)
    assert manifest.made_by["arguments"]["kind"] == "grid"
    bank, _ = load_bank(tmp_path / "out", "train")
    assert bank.num_images == 4 and bank.num_captions == 8


def test_pooled_patches(models, pictures, tmp_path):
    """4 x 4 patches to 2 x 2 and, unevenly, to 3 x 3."""
    whole = packed(models, pictures, tmp_path, "vit")["a"]
    shutil.rmtree(tmp_path / "out")
    two = packed(models, pictures, tmp_path, "vit", "--pool", 2)["a"]
    patches = array(whole, "regions.npy").reshape(4, 4, -1)
    wanted = np.stack([patches[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(0, 1)) for i in range(2) for j in range(2)])
    np.testing.assert_allclose(array(two, "regions.npy"), wanted, atol=3e-3)
    halves = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    np.testing.assert_allclose(array(two, "boxes.npy"), halves, atol=1e-3)
    shutil.rmtree(tmp_path / "out")
    three = packed(models, pictures, tmp_path, "vit", "--pool", 3)["a"]
    np.testing.assert_allclose(array(three, "regions.npy")[0], patches[:2, :2].mean(axis=(0, 1)), atol=3e-3)
    np.testing.assert_allclose(array(three, "boxes.npy")[4], [0.25, 0.25, 0.75, 0.75], atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "clip", "dinov2"])
@pytest.mark.parametrize("size", [(200, 120), (90, 210), (100, 100)])
def test_a_patch_s_box_is_where_its_pixels_come_from(models, name, size):
    """A picture whose colour tells the place: the mean colour of a patch, as the processor hands it out, is its box's centre."""
    processor = AutoImageProcessor.from_pretrained(models[name])
    pixels = processor(tiny.gradient(*size), return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    place = (pixels * std + mean)[:2]  # x and y, 0 to 1
    patches = place.unflatten(2, (4, 8)).unflatten(1, (4, 8)).mean(dim=(2, 4))  # [2, rows, columns]
    boxes = grid.boxes_of(4, 4, 0, grid.window(size, processor))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(patches.flatten(1).T.numpy(), centres, atol=0.02)
    assert np.ptp(centres[:, 0]) > 0.3


def test_boxes_under_resize_and_crop_by_hand():
    """100 x 50 to a shortest edge of 40 is 80 x 40; its centre of 32 x 32 begins at (24, 4)."""
    processor = tiny._cropped(tiny.BitImageProcessor, 40)
    assert grid.window((100, 50), processor) == pytest.approx((24 / 80, 4 / 40, 56 / 80, 36 / 40))
    boxes = grid.boxes_of(4, 4, 0, grid.window((100, 50), processor))
    np.testing.assert_allclose(boxes[5], [(24 + 8) / 80, (4 + 8) / 40, (24 + 16) / 80, (4 + 16) / 40], rtol=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_regions_are_the_surest_queries(models, pictures, tmp_path, name):
    samples = packed(models, pictures, tmp_path, name, "--threshold", 0.3, "--min-regions", 4, "--max-regions", 9)
    for key, sample in samples.items():
        model, pixels = loaded("detector", models[name], pictures[1][key])
        with torch.no_grad():
            out = model(pixel_values=pixels)
        queries = out.logits.shape[1]
        if name == "conditional-detr":
            chances = 1 / (1 + (-out.logits[0]).exp())
        else:
            odds = out.logits[0].exp()
            chances = (odds / odds.sum(dim=1, keepdim=True))[:, :-1]
        sure = chances.max(dim=1).values
        order = sorted(range(queries), key=lambda q: -float(sure[q]))
        keep = order[: min(max(int((sure > 0.3).sum()), 4), 9)]
        assert len(keep) == len(array(sample, "scores.npy"))
        states = out.last_hidden_state[0, -queries:]
        np.testing.assert_allclose(array(sample, "regions.npy"), states[keep].numpy(), atol=3e-3, rtol=2e-3)
        np.testing.assert_allclose(array(sample, "scores.npy"), sure[keep].numpy(), atol=1e-3)
        np.testing.assert_allclose(array(sample, "classes.npy").sum(axis=1), 1, atol=2e-3)
        wanted = (chances / chances.sum(dim=1, keepdim=True))[keep]
        np.testing.assert_allclose(array(sample, "classes.npy"), wanted.numpy(), atol=2e-3)
        x, y, w, h = out.pred_boxes[0][keep].unbind(dim=1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1).clip(0, 1)
        np.testing.assert_allclose(array(sample, "boxes.npy"), corners.numpy(), atol=1e-3)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.class_names == list(tiny.LABELS.values()) and manifest.num_classes == 5


def test_probabilities_by_hand():
    logits = torch.tensor([[0.0, 0.0, torch.log(torch.tensor(2.0))]])
    assert detector.probabilities(logits, 2, "m").tolist() == [pytest.approx([0.25, 0.25])]
    assert detector.probabilities(logits, 3, "m").tolist() == [pytest.approx([0.5, 0.5, 2 / 3])]
    with pytest.raises(UserError, match="gives 3 logits a query for 7 classes"):
        detector.probabilities(logits, 7, "m")
    assert detector.corners(torch.tensor([0.5, 0.1, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.0, 0.6, 0.3])


@pytest.mark.parametrize("name", ["dinov2", "detr"])
def test_a_killed_run_ends_byte_identical(models, pictures, tmp_path, name, monkeypatch):
    monkeypatch.setattr(extract, "CHUNK", 2)
    call = arguments(models, pictures, tmp_path, name)
    extract.run(call)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "out")
    original, seen = build.Packer.pack, []

    def killed(self, job):
        seen.append(job.file)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, job)

    monkeypatch.setattr(build.Packer, "pack", killed)
    with pytest.raises(UserError, match="the same command continues"):
        extract.run(call)
    monkeypatch.setattr(build.Packer, "pack", original)
    done = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    extract.run(call)
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert again == whole and (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == done


def test_another_model_or_setting_is_another_corpus(models, pictures, tmp_path, capsys):
    extract.run(arguments(models, pictures, tmp_path, "vit"))
    extract.run(arguments(models, pictures, tmp_path, "vit"))
    assert "already complete" in capsys.readouterr().out
    for other in (arguments(models, pictures, tmp_path, "vit", "--pool", 2), arguments(models, pictures, tmp_path, "dinov2")):
        with pytest.raises(UserError, match="--overwrite"):
            extract.run(other)


def test_features_do_not_depend_on_the_batch(models, pictures, tmp_path):
    one = packed(models, pictures, tmp_path, "vit", "--batch", 1)
    shutil.rmtree(tmp_path / "out")
    many = packed(models, pictures, tmp_path, "vit", "--batch", 5)
    for key, sample in one.items():
        np.testing.assert_allclose(array(sample, "regions.npy"), array(many[key], "regions.npy"), atol=1e-3)


def test_bf16_is_near(models, pictures, tmp_path):
    full = packed(models, pictures, tmp_path, "vit")
    shutil.rmtree(tmp_path / "out")
    half = packed(models, pictures, tmp_path, "vit", "--dtype", "bf16")
    a, b = array(full["a"], "regions.npy"), array(half["a"], "regions.npy")
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_thumbnails_are_upright_pictures_of_the_asked_size(models, pictures, tmp_path):
    sample = packed(models, pictures, tmp_path, "vit", "--thumbnails", 20)["e"]
    assert Image.open(BytesIO(sample["image.jpg"])).size == (20, 10)
    shutil.rmtree(tmp_path / "out")
    assert "image.jpg" not in packed(models, pictures, tmp_path, "vit", "--thumbnails", 0)["e"]
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    Image.new("RGB", (40, 20)).save(turned, exif=exif)
    assert open_picture(turned).size == (20, 40)
