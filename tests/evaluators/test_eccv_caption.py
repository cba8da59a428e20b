"""Our COCO 1K and 5K recalls against eccv_caption's (MIT), on a random matrix over the Karpathy test split."""

import warnings

import pytest
import torch

from tagsds.evaluators.metrics import coco_folds, recalls

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "failed to import ujson"
    eccv_caption = pytest.importorskip("eccv_caption", reason="the package eccv_caption is not installed")

IMAGES, FOLD = 5000, 1000


@pytest.fixture(scope="module")
def case():
    """(metrics object, image ids, caption ids, image_of_caption, scores); true pairs are lifted."""
    metrics = eccv_caption.Metrics()
    caption_ids = [int(c) for c in metrics.coco_ids]
    image_ids = list(dict.fromkeys(metrics.coco_gts["t2i"][c][0] for c in caption_ids))
    row = {image: i for i, image in enumerate(image_ids)}
    owner = torch.tensor([row[metrics.coco_gts["t2i"][c][0]] for c in caption_ids])
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(IMAGES, len(caption_ids), generator=generator)
    scores[owner, torch.arange(len(caption_ids))] += 3.0
    return metrics, image_ids, caption_ids, owner, scores


def retrieved(scores: torch.Tensor, own_fold: torch.Tensor, items: list[int]) -> list[list[int]]:
    """Each row's best ten items of all, then its best ten of its own fold.

    eccv_caption keeps those of the fold, in order, and looks at ten at most: the full ranking of 25,000 gives the same.
    """
    best = scores.topk(10, dim=1).indices
    best_of_fold = scores.masked_fill(~own_fold, -torch.inf).topk(10, dim=1).indices
    return [[items[i] for i in dict.fromkeys(row)] for row in torch.cat([best, best_of_fold], 1).tolist()]


def test_recalls_agree_with_eccv_caption(case):
    metrics, image_ids, caption_ids, owner, scores = case
    fold_of_image, fold_of_caption = torch.arange(IMAGES) // FOLD, owner // FOLD
    i2t, t2i = {}, {}
    for start in range(0, IMAGES, FOLD):
        rows = slice(start, start + FOLD)
        lists = retrieved(scores[rows], fold_of_caption == fold_of_image[rows, None], caption_ids)
        i2t |= dict(zip(image_ids[rows], lists, strict=True))
    for start in range(0, len(caption_ids), 5 * FOLD):
        columns = slice(start, start + 5 * FOLD)
        lists = retrieved(scores[:, columns].t(), fold_of_image == fold_of_caption[columns, None], image_ids)
        t2i |= dict(zip(caption_ids[columns], lists, strict=True))

    wanted = ["coco_1k_recalls", "coco_5k_recalls"]
    theirs = metrics.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=(1, 5, 10))
    ours = {"coco_1k": coco_folds(scores, owner), "coco_5k": recalls(scores, owner)}
    for name, values in ours.items():
        for k in (1, 5, 10):
            assert getattr(values, f"text_r{k}") == pytest.approx(100 * theirs[f"{name}_r{k}"]["i2t"], abs=1e-9)
            assert getattr(values, f"image_r{k}") == pytest.approx(100 * theirs[f"{name}_r{k}"]["t2i"], abs=1e-9)
    assert 5 < ours["coco_5k"].image_r1 < ours["coco_1k"].image_r1 < 95
