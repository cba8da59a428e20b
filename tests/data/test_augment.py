"""Augmentation: a function of (seed, step, slot), against plain loops over images and captions."""

from __future__ import annotations

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.augment import Augmentation, AugmentConfig
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import corpus_tokenizer
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest


@pytest.fixture(scope="module")
def corpus(world):
    return load_bank(world, "train", classes=False)[0], corpus_tokenizer(read_manifest(world))


DRAW = Draw(1, 2, 3)


def seen(corpus, draw=DRAW, **changes):
    bank, tokenizer = corpus
    return Augmentation(AugmentConfig(**changes), tokenizer)(bank, draw)


def every(bank):
    return torch.arange(bank.num_images)


def test_nothing_is_changed_by_default(corpus):
    assert seen(corpus) is corpus[0]
    assert not load_config("tags-base-coco").augment.changes


def test_noise_has_the_size_asked_for(corpus):
    plain, noisy = corpus[0].image_table(every(corpus[0])), seen(corpus, feature_noise=0.5).image_table(every(corpus[0]))
    assert torch.equal(plain.regions.lengths, noisy.regions.lengths) and torch.equal(plain.geometry, noisy.geometry)
    x = plain.regions.values.float()
    size = x.square().mean(dim=1, keepdim=True).sqrt()
    noise = (noisy.regions.values - x)[size[:, 0] > 0] / size[size[:, 0] > 0]
    assert abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 0.5) < 0.02


def test_a_micro_batch_sees_one_change_and_the_next_another(corpus):
    changes = {"feature_noise": 0.3, "drop_regions": 0.3, "mirror": True, "drop_words": 0.3}
    one, again, other = (seen(corpus, draw, **changes) for draw in (Draw(1, 2, 3), Draw(1, 2, 3), Draw(1, 2, 4)))
    order = torch.randperm(len(every(one)), generator=torch.Generator().manual_seed(0))
    a, b, c = one.image_table(every(one)), again.image_table(order), other.image_table(every(one))
    for place, image in enumerate(order.tolist()):  # in another order, and in another table: the same image
        assert torch.equal(a.regions[image], b.regions[place])
    assert not torch.equal(a.regions.lengths, c.regions.lengths)
    captions = torch.arange(one.num_captions)
    assert torch.equal(one.hidden_text_table(captions).values, again.hidden_text_table(captions).values)
    assert not torch.equal(one.hidden_text_table(captions).values, other.hidden_text_table(captions).values)


@pytest.mark.parametrize("p", [0.2, 0.95])
def test_dropped_regions(corpus, p):
    bank, view = corpus[0], seen(corpus, drop_regions=p)
    rows, before = view.region_rows(every(bank)), bank.region_rows(every(bank))
    assert int(rows.lengths.min()) >= 1
    for image in range(bank.num_images):
        mine, all_of_it = rows[image].tolist(), before[image].tolist()
        assert mine == [row for row in all_of_it if row in set(mine)]  # in their order, of this image alone
    images = view.image_table(every(bank))
    assert torch.equal(images.regions.values, bank.regions.values[rows.values])
    expected = 1 - p
    if p < 0.5:
        assert abs(len(rows.values) / len(before.values) - expected) < 0.05


def test_mirrored_boxes_and_words(corpus):
    bank, tokenizer = corpus
    view = seen(corpus, mirror=True)
    images, plain = view.image_table(every(bank)), bank.image_table(every(bank))
    flipped = []
    for image in range(bank.num_images):
        begin, end = int(plain.regions.offsets[image]), int(plain.regions.offsets[image + 1])
        mine, was = images.geometry[begin:end], plain.geometry[begin:end]
        turned = was.clone()
        turned[:, 0], turned[:, 2] = 1 - was[:, 2], 1 - was[:, 0]
        assert torch.allclose(mine, was) or torch.allclose(mine, turned, atol=1e-6)
        flipped.append(torch.allclose(mine, turned, atol=1e-6))
    assert 0.25 < sum(flipped) / len(flipped) < 0.75
    left, right = tokenizer.convert_tokens_to_ids(["left", "right"])
    swapped = 0
    texts, was = view.text_table(torch.arange(bank.num_captions)), bank.text_table(torch.arange(bank.num_captions))
    for caption in range(bank.num_captions):
        expected = was[caption].tolist()
        if flipped[int(bank.image_of_caption[caption])]:
            expected = [{left: right, right: left}.get(piece, piece) for piece in expected]
        assert texts[caption].tolist() == expected
        swapped += expected != was[caption].tolist()
    assert swapped > 10


def test_a_piece_of_a_longer_word_is_no_side(corpus):
    bank, tokenizer = corpus
    view = seen(corpus, mirror=True)
    view.words.continues[tokenizer.sep_token_id] = True  # as if every last word went on
    last = [row[-2] for row in (view.text_table(torch.tensor([n])).values.tolist() for n in range(bank.num_captions))]
    assert last == [bank.text_table(torch.tensor([n])).values.tolist()[-2] for n in range(bank.num_captions)]


def test_hidden_words(corpus):
    bank, tokenizer = corpus
    view, captions = seen(corpus, drop_words=0.25), torch.arange(corpus[0].num_captions)
    plain, hidden = bank.text_table(captions), view.hidden_text_table(captions)
    assert torch.equal(view.text_table(captions).values, plain.values)  # mining and writing see all words
    masked = hidden.values == tokenizer.mask_token_id
    special = torch.isin(plain.values, torch.tensor(tokenizer.all_special_ids))
    assert not (masked & special).any()
    assert torch.equal(hidden.values[~masked], plain.values[~masked])
    assert abs(float(masked.sum() / (~special).sum()) - 0.25) < 0.04


@pytest.mark.parametrize("change", ["augment.drop_regions=1.0", "augment.drop_words=-0.1", "augment.feature_noise=-1"])
def test_values_that_mean_nothing(change):
    with pytest.raises(UserError, match=change.split("=")[0]):
        load_config("tags-base-coco", [change])
