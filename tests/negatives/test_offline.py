"""Offline candidates: reading and its refusals, the draws over ranks, and re-mining against a loop over pairs."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch

from tagsds.data.shards import load_bank
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tagsds.negatives.offline import (
    Candidates,
    OfflineConfig,
    check_ranks,
    check_whole,
    draw_from_ranks,
    draw_quintuplet,
    mine_offline,
)
from tagsds.negatives.random import NegativesConfig
from tagsds.negatives.remine import rescore
from tagsds.scoring.scorer import Scorer
from tests.candidates import candidates_of
from tests.small_world import caption_ids, model_of, score_of

CAPTIONS = torch.tensor([3, 41, 4, 17])  # 3 and 4 belong to one image
PER_IMAGE, PER_CAPTION = 30, 7


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, manifest, candidates_of(bank, PER_IMAGE, PER_CAPTION)


# --- reading -------------------------------------------------------------------------------------------------------


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(folder, world, candidates: Candidates, **changes):
    """A folder of the miner, `changes` to its manifest last."""
    folder.mkdir(exist_ok=True)
    tables = {"captions_of_image": candidates.captions_of_image, "images_of_caption": candidates.images_of_caption}
    for name, table in tables.items():
        np.save(folder / f"{name}.npy", table.numpy(), allow_pickle=False)
    manifest = {
        "format": "tagsds-candidates",
        "version": 1,
        "split": "dev",
        "images": len(candidates.captions_of_image),
        "captions": len(candidates.images_of_caption),
        "captions_per_image": candidates.captions_of_image.shape[1],
        "images_per_caption": candidates.images_of_caption.shape[1],
        "checkpoint": "runs/first/export",
        "checkpoint_sha256": "0" * 64,
        "data_sha256": digest(world / "manifest.json"),
        "sha256": {f"{name}.npy": digest(folder / f"{name}.npy") for name in tables},
    }
    (folder / "candidates.json").write_text(json.dumps(manifest | changes))
    return folder


def test_what_was_written_is_read(corpus, world, tmp_path):
    _, manifest, candidates = corpus
    folder = write(tmp_path / "mined", world, candidates)
    read = Candidates.read(folder, manifest, "dev")
    assert torch.equal(read.captions_of_image, candidates.captions_of_image)
    assert torch.equal(read.images_of_caption, candidates.images_of_caption)
    assert read.captions_of_image.dtype == read.images_of_caption.dtype == torch.int32
    assert (read.manifest["checkpoint"], read.folder) == ("runs/first/export", folder)


def refusal(folder, manifest, split="dev") -> str:
    with pytest.raises(UserError) as error:
        Candidates.read(folder, manifest, split)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and "tagsds-mine" in text and str(folder) in text
    return text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "tagsds-shards"}, "format tagsds-candidates 1"),
        ({"version": 2}, "format tagsds-candidates 1"),
        ({"split": "train"}, "split 'train' and data.split is 'dev'"),
        ({"data_sha256": "0" * 64}, "other shards"),
        ({"images": 11}, "11 images where the shards hold 12"),
        ({"captions": 7}, "7 captions where the shards hold 60"),
        ({"captions_per_image": 29}, "captions_of_image.npy is int32 [12, 30], not int32 [12, 29]"),
        ({"images_per_caption": 8}, "images_of_caption.npy is int32 [60, 7], not int32 [60, 8]"),
        ({"sha256": {}}, "not a manifest of tagsds-mine"),
    ],
)
def test_manifest_and_shards_disagree(corpus, world, tmp_path, changes, words):
    assert words in refusal(write(tmp_path / "mined", world, corpus[2], **changes), corpus[1])


def test_files_that_are_missing_or_broken(corpus, world, tmp_path):
    _, manifest, candidates = corpus
    assert "does not exist" in refusal(tmp_path / "nowhere", manifest)
    folder = write(tmp_path / "mined", world, candidates)
    (folder / "images_of_caption.npy").unlink()
    assert "images_of_caption.npy is named in candidates.json but missing" in refusal(folder, manifest)
    path = write(folder, world, candidates) / "captions_of_image.npy"
    path.write_bytes(path.read_bytes()[:-4])
    assert "captions_of_image.npy has another sha256" in refusal(folder, manifest)
    sums = {name: digest(folder / name) for name in ("captions_of_image.npy", "images_of_caption.npy")}
    (folder / "candidates.json").write_text(json.dumps(json.loads((folder / "candidates.json").read_text()) | {"sha256": sums}))
    assert "no whole npy array" in refusal(folder, manifest)
    wide = Candidates(candidates.captions_of_image.long(), candidates.images_of_caption, {})
    assert "is int64 [12, 30], not int32" in refusal(write(folder, world, wide), manifest)
    (folder / "candidates.json").write_text('{"format": ')
    assert "is not valid JSON" in refusal(folder, manifest)


def test_the_split_of_the_training_is_asked_for(corpus, world, tmp_path):
    folder = write(tmp_path / "mined", world, corpus[2])
    assert "data.split is 'train'" in refusal(folder, read_manifest(world), "train")


# --- ranks ---------------------------------------------------------------------------------------------------------


def check_refusal(*arguments) -> str:
    with pytest.raises(UserError) as error:
        check_ranks(*arguments)
    return str(error.value)


def test_ranks_that_the_candidates_do_not_hold(corpus):
    candidates = corpus[2]
    check_ranks(candidates, 0, 29, 30)  # captions 0..29; images 0..5 of 7
    check_ranks(candidates, 25, 29, 5)
    assert "offline.last=30" in check_refusal(candidates, 0, 30) and "set offline.last=29" in check_refusal(candidates, 0, 30)
    assert "cannot be drawn from ranks offline.first=10 to offline.last=15" in check_refusal(candidates, 10, 15, 7)
    few_images = Candidates(candidates.captions_of_image, candidates.images_of_caption[:, :4], {})
    check_ranks(few_images, 0, 19)
    assert "set offline.last=19" in check_refusal(few_images, 0, 20)  # rank 20 // 5 = 4 of an image is not there
    padded = candidates.captions_of_image.clone()
    padded[5, 12:] = -1
    short = Candidates(padded, candidates.images_of_caption, {})
    check_ranks(short, 0, 11)
    assert "set offline.last=11" in check_refusal(short, 0, 12)
    assert "offline.first=20" in check_refusal(short, 20, 25)


def test_a_window_of_the_split_will_not_do(corpus, world):
    bank, _, candidates = corpus
    check_whole(candidates, bank)
    part, _ = load_bank(world, "dev", first=5)
    with pytest.raises(UserError, match=r"12 images but 5 are in memory; raise data.max_gib"):
        draw_quintuplet(candidates, part, CAPTIONS, 0, 9, seeded(0))


# --- draws ---------------------------------------------------------------------------------------------------------


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


def test_the_quintuplet_over_many_draws(corpus):
    """Ranks 5..19 uniform for every pair (chi-square, 14 degrees, 0.999 quantile 36.1), one rank for T_off and I_off, I'_off the
    image of T_off, T'_off each of the captions of I_off."""
    bank, _, candidates = corpus
    own, owner = bank.image_of_caption[CAPTIONS].tolist(), bank.image_of_caption.tolist()
    ranks = [Counter() for _ in CAPTIONS]
    places: Counter = Counter()
    for seed in range(3000):
        drawn = draw_quintuplet(candidates, bank, CAPTIONS, 5, 19, seeded(seed))
        columns = (drawn.caption_off, drawn.image_off, drawn.other_caption, drawn.other_image)
        for b, (t, i, t_other, i_other) in enumerate(zip(*(column.tolist() for column in columns))):
            n = candidates.captions_of_image[own[b]].tolist().index(t)
            assert candidates.images_of_caption[int(CAPTIONS[b])].tolist().index(i) == n // 5
            assert i_other == owner[t] != own[b] and owner[t_other] == i != own[b]
            ranks[b][n] += 1
            places[bank.captions_of_image[i].tolist().index(t_other)] += 1
    for counts in ranks:
        assert sorted(counts) == list(range(5, 20))
        assert chi_square(list(counts.values())) < 36.1
    assert sorted(places) == list(range(5)) and chi_square(list(places.values())) < 18.5  # 4 degrees, 0.999


def test_ranks_without_repeats(corpus):
    bank, _, candidates = corpus
    own = bank.image_of_caption[CAPTIONS].tolist()
    hits: Counter = Counter()
    for seed in range(1500):
        images, captions = draw_from_ranks(candidates, bank, CAPTIONS, 3, 10, 29, seeded(seed))
        assert images.index.shape == captions.index.shape == (4, 3)
        assert images.valid.all() and captions.valid.all()
        for b, caption in enumerate(CAPTIONS.tolist()):
            at = [candidates.captions_of_image[own[b]].tolist().index(c) for c in captions.index[b].tolist()]
            assert len(set(at)) == 3 and min(at) >= 10
            hits.update(at)
            at = [candidates.images_of_caption[caption].tolist().index(i) for i in images.index[b].tolist()]
            assert len(set(at)) == 3 and set(at) <= {2, 3, 4, 5}
            hits.update(-k for k in at)
    assert chi_square([hits[n] for n in range(10, 30)]) < 43.8  # 19 degrees, 0.999
    assert chi_square([hits[-n] for n in range(2, 6)]) < 16.3  # 3 degrees


def test_fewer_images_than_wanted(corpus):
    """Ranks 0..29 hold 6 images: with 20 wanted all 6 are taken, and only they."""
    bank, _, candidates = corpus
    images, captions = draw_from_ranks(candidates, bank, CAPTIONS, 20, 0, 29, seeded(0))
    assert captions.index.shape == (4, 20) and images.index.shape == (4, 6)
    for row, caption in zip(images.index.tolist(), CAPTIONS.tolist()):
        assert sorted(row) == sorted(candidates.images_of_caption[caption, :6].tolist())


def test_ranks_behind_the_end_of_a_row_are_not_valid(corpus):
    bank, _, candidates = corpus
    padded = candidates.captions_of_image.clone()
    padded[:, 8:] = -1
    short = Candidates(padded, candidates.images_of_caption, {})
    _, captions = draw_from_ranks(short, bank, CAPTIONS, 30, 0, 29, seeded(1))
    assert captions.valid.sum(dim=1).tolist() == [8] * 4 and (captions.index >= 0).all()


def test_the_draw_decides(corpus):
    bank, _, candidates = corpus

    def drawn(draw: Draw):
        quintuplet = draw_quintuplet(candidates, bank, CAPTIONS, 0, 29, draw.generator("cpu", "offline quintuplet"))
        hard = draw_from_ranks(candidates, bank, CAPTIONS, 5, 0, 29, draw.generator("cpu", "offline negatives"))
        tensors = [*vars(quintuplet).values(), hard[0].index, hard[1].index]
        return [x.flatten().tolist() for x in tensors]

    first = drawn(Draw(7, 5, 1))
    torch.manual_seed(99)
    assert drawn(Draw(7, 5, 1)) == first
    for other in (Draw(7, 5, 2), Draw(7, 6, 1), Draw(8, 5, 1)):
        assert all(a != b for a, b in zip(drawn(other), first))


# --- with the encoder ----------------------------------------------------------------------------------------------


def test_mined_candidates_are_the_hardest_of_the_draw(corpus):
    bank, manifest, candidates = corpus
    model, draw = model_of(manifest), Draw(3, 1, 4)
    drawn = draw_from_ranks(candidates, bank, CAPTIONS, 9, 2, 27, draw.generator("cpu", "offline negatives"))
    ranks, random = OfflineConfig(first=2, last=27), NegativesConfig(count=9, keep=4)
    images, others = mine_offline(candidates, bank, CAPTIONS, ranks, random, Scorer(model), draw)
    own = bank.image_of_caption[CAPTIONS].tolist()
    with torch.no_grad():
        for b, caption in enumerate(CAPTIONS.tolist()):
            score = {i: float(score_of(model, bank, caption_ids(bank, caption), i)) for i in drawn[0].index[b].tolist()}
            assert images.index[b].tolist() == sorted(score, key=score.get, reverse=True)[:4]
            score = {c: float(score_of(model, bank, caption_ids(bank, c), own[b])) for c in drawn[1].index[b].tolist()}
            assert others.index[b].tolist() == sorted(score, key=score.get, reverse=True)[:4]
    assert images.valid.all() and others.valid.all()


@pytest.mark.parametrize("block", [4096, 12])
def test_re_mining_orders_the_pool_and_nothing_else(corpus, monkeypatch, block):
    bank, manifest, candidates = corpus
    monkeypatch.setattr("tagsds.negatives.remine.PAIRS_A_CALL", block)
    model, pool = model_of(manifest), 5
    padded = candidates.captions_of_image.clone()
    padded[7, 3:] = -1
    before = Candidates(padded, candidates.images_of_caption, {})
    images, captions = torch.tensor([2, 7, 9]), torch.tensor([0, 33, 34, 58])
    new_images, new_captions = rescore(Scorer(model), bank, before, pool, images, captions)
    assert torch.equal(before.captions_of_image, padded), "the candidates themselves stay"
    with torch.no_grad():
        for image, row in zip(images.tolist(), new_images.tolist()):
            old = padded[image].tolist()
            score = {c: float(score_of(model, bank, caption_ids(bank, c), image)) for c in old[:pool] if c >= 0}
            assert row == [*sorted(score, key=score.get, reverse=True), *old[len(score) :]]
        for caption, row in zip(captions.tolist(), new_captions.tolist()):
            old = before.images_of_caption[caption].tolist()
            score = {i: float(score_of(model, bank, caption_ids(bank, caption), i)) for i in old[:pool]}
            assert row == [*sorted(score, key=score.get, reverse=True), *old[pool:]]
    again = rescore(Scorer(model), bank, before, pool, images, captions)
    assert torch.equal(again[0], new_images) and torch.equal(again[1], new_captions)
    after = Candidates(padded.clone(), before.images_of_caption.clone(), {})
    after.captions_of_image[images], after.images_of_caption[captions] = new_images, new_captions
    settled = rescore(Scorer(model), bank, after, pool, images, captions)
    assert torch.equal(settled[0], new_images) and torch.equal(settled[1], new_captions)


def test_equal_scores_keep_their_order_and_a_large_pool_is_the_whole_row(corpus):
    bank, _, candidates = corpus
    rows = rescore(lambda pairs: torch.zeros(len(pairs)), bank, candidates, 500, torch.arange(12), torch.arange(60))
    assert torch.equal(rows[0], candidates.captions_of_image) and torch.equal(rows[1], candidates.images_of_caption)
