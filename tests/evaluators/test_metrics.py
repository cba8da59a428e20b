"""Ranks, recalls, folds and accuracies on matrices worked by hand."""

import math

import pytest
import torch

from tagsds.errors import UserError
from tagsds.evaluators.metrics import (
    Recalls,
    check_scores,
    coco_folds,
    mean_recalls,
    median,
    pair_accuracy,
    ranks,
    recalls,
    recalls_of_ranks,
)

# Three images; captions 0, 1 belong to image 0, caption 2 to image 1, captions 3, 4, 5 to image 2.
OWNER = torch.tensor([0, 0, 1, 2, 2, 2])
SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.5, 0.2, 0.3, 0.0],
        [0.8, 0.7, 0.6, 0.1, 0.2, 0.3],
        [0.4, 0.2, 0.7, 0.6, 0.1, 0.5],
    ]
)
# image 0: best own caption 0.9, no foreign caption reaches it                                  -> text rank 0
# image 1: own 0.6; foreign 0.8 and 0.7 above it                                                -> 2
# image 2: best own 0.6; foreign 0.7 above it                                                   -> 1
# caption 0: own image 0.9 | 0.8 0.4 -> 0     caption 1: own 0.1 | 0.7 0.2 -> 2     caption 2: own 0.6 | 0.5 0.7 -> 1
# caption 3: own 0.6 | 0.2 0.1 -> 0           caption 4: own 0.1 | 0.3 0.2 -> 2     caption 5: own 0.5 | 0.0 0.3 -> 0


def test_ranks_worked_by_hand_with_uneven_captions():
    text, image = ranks(SCORES, OWNER)
    assert text.tolist() == [0, 2, 1]
    assert image.tolist() == [0, 2, 1, 0, 2, 0]


def test_recalls_worked_by_hand():
    result = recalls(SCORES, OWNER)
    assert result.text_r1 == pytest.approx(100 / 3)
    assert result.image_r1 == pytest.approx(50.0)
    assert (result.text_r5, result.text_r10, result.image_r5, result.image_r10) == (100, 100, 100, 100)
    assert result.rsum == pytest.approx(100 / 3 + 50 + 400)
    assert result.text_median == 2  # ranks 1, 2, 3 counted from 1
    assert result.image_median == 1.5  # 1 1 1 | 2 3 3
    assert (result.images, result.captions) == (3, 6)
    assert result.as_dict()["text_r1"] == result.text_r1
    assert set(result.as_dict()) == set(Recalls.__dataclass_fields__) - {"further"}


def test_recall_at_any_n():
    result = recalls(SCORES, OWNER, at=(2, 1, 3)).as_dict()  # text ranks 0, 2, 1; image ranks 0, 2, 1, 0, 2, 0
    assert result["text_r2"] == pytest.approx(200 / 3) and result["image_r2"] == pytest.approx(400 / 6)
    assert result["text_r3"] == result["image_r3"] == 100
    plain = recalls(SCORES, OWNER).as_dict()
    assert {key: result[key] for key in plain} == plain  # rsum is that of 1, 5 and 10
    assert set(result) - set(plain) == {"text_r2", "text_r3", "image_r2", "image_r3"}


def test_the_order_of_the_captions_does_not_matter():
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    text, image = ranks(SCORES[:, order], OWNER[order])
    assert text.tolist() == [0, 2, 1]
    assert image.tolist() == [ranks(SCORES, OWNER)[1][i] for i in order]


def test_ties_count_against_us():
    text, image = ranks(torch.zeros(3, 6), OWNER)
    assert text.tolist() == [4, 5, 3]  # every caption of another image stands above
    assert image.tolist() == [2] * 6
    assert recalls(torch.zeros(20, 20), torch.arange(20)).rsum == 0


def test_a_tie_between_own_captions_costs_nothing():
    text, _ = ranks(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 0, 1]))
    assert text.tolist() == [0, 0]


def test_half_precision_is_compared_as_it_is():
    scores = torch.tensor([[1.0, 1.001], [0.0, 1.0]])
    owner = torch.tensor([0, 1])
    assert ranks(scores, owner)[0].tolist() == [1, 0]
    text, _ = ranks(torch.tensor([[1.001, 1.0], [0.0, 1.0]]).bfloat16(), owner)  # both round to 1
    assert text.tolist() == [1, 0]


def test_infinities_are_scores():
    text, image = ranks(torch.tensor([[math.inf, -math.inf], [0.0, -math.inf]]), torch.tensor([0, 1]))
    assert text.tolist() == [0, 1]
    assert image.tolist() == [0, 1]


def test_more_rows_than_are_compared_at_a_time():
    torch.manual_seed(0)
    owner = torch.arange(600).repeat_interleave(2)[torch.randperm(1200)]
    scores = torch.randn(600, 1200)
    text, image = ranks(scores, owner)
    for i in (0, 255, 256, 511, 512, 599):
        own = owner == i
        assert text[i] == (scores[i][~own] >= scores[i][own].max()).sum()
    for c in (0, 7, 1199):
        assert image[c] == (scores[:, c] >= scores[owner[c], c]).sum() - 1


def test_nan_is_an_error_that_names_the_place():
    scores = torch.zeros(300, 300)
    scores[270, 4] = math.nan
    with pytest.raises(UserError, match=r"image 270 with caption 4 is NaN.*fp32"):
        ranks(scores, torch.arange(300))


def test_bad_indices_are_programming_errors():
    with pytest.raises(ValueError, match="without a caption"):
        check_scores(torch.zeros(3, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="other than"):
        check_scores(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError):
        check_scores(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_medians():
    assert median(torch.tensor([3, 1, 2])) == 2
    assert median(torch.tensor([4, 1, 2, 3])) == 2.5
    assert recalls_of_ranks(torch.tensor([0, 9, 10]), torch.tensor([4, 5])).text_r10 == pytest.approx(200 / 3)


def test_folds_see_only_their_own_images_and_captions():
    # Two folds of two images. Inside a fold every true pair wins; across the folds everything scores higher.
    owner = torch.tensor([0, 2, 1, 3, 0])
    scores = torch.full((4, 5), 5.0)
    for caption, image in enumerate(owner.tolist()):
        for row in range(4):
            if row // 2 == image // 2:
                scores[row, caption] = 1.0 if row == image else 0.0
    whole, folds = recalls(scores, owner), coco_folds(scores, owner, folds=2, images_per_fold=2)
    assert (whole.text_r1, whole.image_r1) == (0, 0)
    assert (folds.text_r1, folds.image_r1, folds.rsum) == (100, 100, 600)
    assert folds.images == 2
    scores[0, [0, 4]] = -1.0  # image 0 now loses against image 1 for its two captions, and against caption 2
    folds = coco_folds(scores, owner, folds=2, images_per_fold=2)
    assert folds.text_r1 == pytest.approx((50 + 100) / 2)
    assert folds.image_r1 == pytest.approx((100 / 3 + 100) / 2)  # one of three captions, two of two


def test_folds_want_the_right_number_of_images():
    with pytest.raises(UserError, match=r"5000 images, the scores have 3.*coco-folds"):
        coco_folds(SCORES, OWNER)


def test_folds_refuse_nan():
    scores = torch.zeros(2, 2)
    scores[0, 1] = math.nan  # between the folds, where no recall looks
    with pytest.raises(UserError, match="NaN"):
        coco_folds(scores, torch.tensor([0, 1]), folds=2, images_per_fold=1)


def test_mean_of_recalls():
    one, two = recalls(SCORES, OWNER), recalls(torch.zeros(3, 6), OWNER)
    mean = mean_recalls([one, two])
    assert mean.text_r1 == pytest.approx(one.text_r1 / 2)
    assert isinstance(mean.images, int)


def test_pair_accuracy():
    true, false = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([0.0, 2.0, 4.0, -1.0])
    assert pair_accuracy(true, false) == 50.0  # the tie is an error
    with pytest.raises(UserError, match="NaN"):
        pair_accuracy(true, torch.full((4,), math.nan))
    with pytest.raises(ValueError):
        pair_accuracy(true, false[:2])
    with pytest.raises(ValueError):
        pair_accuracy(true[:0], false[:0])
