"""tagsds-extract, kind detector: against plain forwards, the library's own post-processing, and queries kept by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_extract_grid import make_source, regions_of
from tiny_inputs import load
from tiny_vision import LABELS, PROCESSORS, TinyPictures, save_model

from preprocess import extract
from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.vision.checkpoint import Checkpoint
from tagsds.vision.detector import DetectorExtractor, corners
from tagsds.vision.regions import Pixels

SOFTMAX = {"detr": True, "yolos": True, "conditional": False, "deformable": False, "rt_detr": False}


@pytest.mark.parametrize("name", list(SOFTMAX))
def test_regions_are_those_of_a_plain_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each picture alone, through the library's calls; sorted here by a loop of its own."""
    tiny, model = TinyPictures(tmp_path), save_model(tmp_path / name, name)
    source = make_source(tiny, tmp_path / name, "--threshold", "0.45", "--min-regions", "3", "--max-regions", "11")
    assert source.name == "detector" and source.feature_dim == source.vision.extractor.feature_dim == model.config.hidden_size
    assert source.class_names == ["cat", "dog", "tennis racket"]
    found = regions_of(source, monkeypatch)
    counts = set()
    for number in tiny.split["train"]:
        picture = tiny.picture(number)
        with torch.no_grad():
            output = model(**PROCESSORS[name]()(images=picture, return_tensors="pt"))
        logits = output.logits[0].double()
        chances = logits.softmax(-1)[:, :3] if SOFTMAX[name] else torch.sigmoid(logits)
        best = [max(row) for row in chances.tolist()]
        order = sorted(range(15), key=lambda query: -best[query])
        kept = [query for query in order if best[query] > 0.45][:11]
        kept = kept if len(kept) >= 3 else order[:3]
        counts.add(len(kept))
        regions = found[f"{number:012d}"]
        np.testing.assert_allclose(regions.features, output.last_hidden_state[0, -15:][kept].numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(regions.scores, [best[query] for query in kept], rtol=1e-5)
        np.testing.assert_allclose(regions.classes, (chances / chances.sum(-1, keepdim=True))[kept].numpy(), rtol=1e-4, atol=1e-6)
        x, y, w, h = output.pred_boxes[0][kept].numpy().T
        expected = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1).clip(0, 1)
        np.testing.assert_allclose(regions.boxes, expected, atol=1e-5)
    assert min(counts) >= 3 and max(counts) <= 11


@pytest.mark.parametrize("name", ["detr", "rt_detr"])
def test_boxes_and_scores_are_the_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """post_process_object_detection in pixels of the original picture, divided by its size."""
    tiny, model = TinyPictures(tmp_path, {"train": [1, 2]}), save_model(tmp_path / name, name)
    source = make_source(tiny, tmp_path / name, "--min-regions", "15", "--threshold", "0")
    found = regions_of(source, monkeypatch)
    for number, (width, height) in ((1, (60, 40)), (2, (40, 60))):
        processor = PROCESSORS[name]()
        with torch.no_grad():
            output = model(**processor(images=tiny.picture(number), return_tensors="pt"))
        theirs = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(height, width)])[0]
        boxes = (theirs["boxes"] / torch.tensor([width, height, width, height])).clamp(0, 1).numpy()
        ours = found[f"{number:012d}"]
        for score, box in zip(ours.scores, ours.boxes):  # theirs may list a query twice (once a class) and in another order
            near = np.abs(boxes - box).max(1) + np.abs(theirs["scores"].numpy() - score)
            assert near.min() < 1e-5


def test_padding_would_change_the_features(tmp_path: Path) -> None:
    """Why a batch holds pictures of one processed size: DETR's backbone sees beyond the edge in spite of the mask."""
    tiny, model = TinyPictures(tmp_path), save_model(tmp_path / "detr", "detr")
    processor = PROCESSORS["detr"]()
    with torch.no_grad():
        alone = model(**processor(images=tiny.picture(1), return_tensors="pt")).last_hidden_state[0]
        both = model(**processor(images=[tiny.picture(1), tiny.picture(2)], return_tensors="pt")).last_hidden_state[0]
    assert (alone - both).abs().max() > 1e-3


def stub(logits: list[list[float]], boxes: list[list[float]], **limits: float) -> DetectorExtractor:
    """An extractor whose model answers with these logits [Q, C or C + 1] and boxes; the feature of query q is (q, q)."""
    hidden = torch.arange(len(logits), dtype=torch.float32)[None, :, None].repeat(1, 1, 2)

    class Model:
        config = SimpleNamespace(id2label=LABELS, num_labels=3, hidden_size=2)

        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.tensor([logits]), pred_boxes=torch.tensor([boxes]), last_hidden_state=hidden)

        __call__ = forward

    given = {"threshold": 0.5, "fewest": 1, "most": 9, **limits}
    return DetectorExtractor(Checkpoint(Path("model"), [], {}), Model(), SimpleNamespace(), **given)


BOXES = [[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.4, 0.1], [0.9, 0.5, 0.4, 1.0], [0.5, 0.5, 1.0, 1.0]]


def log(rows: list[list[float]]) -> list[list[float]]:
    return np.log(rows).tolist()


def keep(extractor: DetectorExtractor):
    return extractor([None], torch.zeros(1, 3, 4, 4), None)[0]


def test_softmax_heads_by_hand() -> None:
    """Four queries with the chances of cat, dog, racket and "no object"."""
    chances = [[0.1, 0.55, 0.05, 0.3], [0.05, 0.05, 0.0001, 0.8999], [0.8, 0.1, 0.05, 0.05], [0.2, 0.2, 0.3, 0.3]]
    regions = keep(stub(log(chances), BOXES))
    assert regions.features.tolist() == [[2, 2], [0, 0]]  # 0.8, then 0.55; 0.3 and 0.05 are below 0.5
    np.testing.assert_allclose(regions.scores, [0.8, 0.55], rtol=1e-5)
    shares = np.array([[0.8, 0.1, 0.05], [0.1, 0.55, 0.05]]) / [[0.95], [0.7]]
    np.testing.assert_allclose(regions.classes, shares, rtol=1e-5)
    np.testing.assert_allclose(regions.boxes, [[0.7, 0, 1, 1], [0.4, 0.3, 0.6, 0.7]], atol=1e-6)  # the first is clipped at 1.1
    assert keep(stub(log(chances), BOXES, fewest=3)).features[:, 0].tolist() == [2, 0, 3]
    assert keep(stub(log(chances), BOXES, fewest=20, most=30)).features[:, 0].tolist() == [2, 0, 3, 1]  # there are but four
    assert keep(stub(log(chances), BOXES, threshold=0.01, most=3)).features[:, 0].tolist() == [2, 0, 3]


def test_sigmoid_heads_by_hand() -> None:
    chances = np.array([[0.6, 0.2, 0.2], [0.9, 0.8, 0.3], [0.02, 0.01, 0.01], [0.6, 0.5, 0.1]])
    regions = keep(stub(np.log(chances / (1 - chances)).tolist(), BOXES))
    assert regions.features[:, 0].tolist() == [1, 0, 3]  # equals stay in the model's order
    np.testing.assert_allclose(regions.scores, [0.9, 0.6, 0.6], rtol=1e-5)
    np.testing.assert_allclose(regions.classes, [[0.45, 0.4, 0.15], [0.6, 0.2, 0.2], [0.5, 0.5 / 1.2, 0.1 / 1.2]], rtol=1e-5)


def test_hopeless_sigmoids_still_sum_to_one() -> None:
    """Chances of 1e-87 are zero in float32; their ratios are not lost."""
    regions = keep(stub([[-200.0, -201.0, -400.0]], BOXES[:1]))
    np.testing.assert_allclose(regions.classes, [[1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1)), 0]], rtol=1e-5)


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"^model: the model's head has 5 classes, config.json names 3; copy .*again.$"):
        keep(stub([[0.0] * 5], BOXES[:1]))


def test_corners_are_clipped() -> None:
    assert corners(torch.tensor([[0.25, 1.0, 1.0, 0.5]])).tolist() == [[0.0, 0.75, 0.75, 1.0]]


def test_the_shards_hold_it(tmp_path: Path) -> None:
    tiny = TinyPictures(tmp_path)
    save_model(tmp_path / "detr", "detr")
    extract.run(tiny.arguments(tmp_path / "detr", "--threshold", "0.45", "--min-regions", "4", "--max-regions", "12"))
    assert "train 5 images, 10 captions" in verify_corpus(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["num_classes"] == 3 and manifest["class_names"] == list(LABELS.values()) and manifest["feature_dim"] == 16
    assert manifest["background_class"] is False  # "no object" is left out
    identity = manifest["made_by"]["arguments"]
    assert (identity["kind"], identity["threshold"], identity["min_regions"], identity["max_regions"]) == ("detector", 0.45, 4, 12)
    assert set(identity["model"]) == {"config.json", "preprocessor_config.json", "model.safetensors"} and "pool" not in identity
    sample = load(tmp_path / "out", "train")[f"{1:012d}"]
    n = len(sample["regions.npy"])
    assert 4 <= n <= 12 and manifest["max_regions"] <= 12
    assert sample["boxes.npy"].shape == (n, 4) and sample["classes.npy"].shape == (n, 3)
    assert "scores.npy" not in sample
    bank, _ = load_bank(tmp_path / "out", "train")
    assert bank.classes is not None and bank.classes.shape == (manifest["splits"]["train"]["regions"], 3)


def test_a_padded_picture_is_refused() -> None:
    """A model trained on padded squares gives boxes as fractions of the square."""
    extractor = object.__new__(DetectorExtractor)
    whole = torch.ones(2, 4, dtype=torch.int64)
    half = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]])
    for mask, refused in ((None, False), (whole, False), (half, True)):
        problem = extractor.check(Pixels(torch.zeros(3, 2, 4), mask, (4, 2), None))
        assert (problem is not None and "set do_pad to false" in problem) == refused
