"""The share of true candidates: agreement of captions against a plain loop, and both answers on a drawn corpus."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tagsds.data.shards import load_bank
from tests.bench import truth
from tests.candidates import candidates_of, write_candidates


@pytest.fixture(scope="module")
def bank(world):
    return load_bank(world, "train")[0]


def test_agreement_against_a_plain_loop(bank):
    captions, images = torch.tensor([3, 41, 4, 170]), torch.tensor([[0, 9], [8, 3], [5, 0], [34, 2]])
    rows = [set(bank.tokens[c].tolist()) for c in range(bank.num_captions)]
    idf = {piece: math.log(bank.num_captions / sum(piece in row for row in rows)) for piece in set().union(*rows)}
    found = truth.Agreement(bank)(captions, images)
    for n, caption in enumerate(captions.tolist()):
        for m, image in enumerate(images[n].tolist()):
            others = [c for c in bank.captions_of_image[image].tolist() if c != caption][: truth.OTHERS]
            norm = [math.sqrt(sum(idf[piece] ** 2 for piece in rows[c])) for c in (caption, *others)]
            cosines = [
                sum(idf[piece] ** 2 for piece in rows[caption] & rows[other]) / (norm[0] * norm[1 + at])
                for at, other in enumerate(others)
            ]
            assert float(found[n, m]) == pytest.approx(max(cosines), abs=1e-5)


def test_shares_by_hand():
    # a quarter of true pairs are above the threshold and 5 % of random ones: 15 % above it are half way
    above = torch.tensor([1.0] * 15 + [0.0] * 85)
    assert truth.share_of(above, 0.5, 0.05) == pytest.approx(0.5)
    assert truth.share_of(torch.zeros(9), 0.5, 0.05) == 0.0 and truth.share_of(torch.ones(9), 0.5, 0.05) == 1.0


def test_same_classes_against_a_plain_loop(world):
    bank, _ = load_bank(world, "train")
    candidates = candidates_of(bank, 30, 20)
    captions = torch.tensor([2, 17, 90, 171])
    likeliest, ends = bank.classes.argmax(dim=1).tolist(), bank.regions.offsets.tolist()
    sets = [set(likeliest[ends[image] : ends[image + 1]]) for image in range(bank.num_images)]
    (band,) = truth.by_classes(bank, candidates, captions, [truth.Band(2, 4, 0.0)])
    asked = [(sets[int(bank.image_of_caption[c])], candidates.images_of_caption[c, 2:5].tolist()) for c in captions.tolist()]
    same = [sets[image] == own for own, images in asked for image in images if image >= 0]
    assert band.alike == pytest.approx(sum(same) / len(same)) and 0 < len(same) <= 12


def test_the_command_on_a_drawn_corpus(world, bank, tmp_path, capsys):
    (tmp_path / "mined").mkdir()
    write_candidates(tmp_path / "mined", world, "train", candidates_of(bank, 30, 20))
    asked = ["--candidates", str(tmp_path / "mined"), "--data", str(world), "--scenes", "0", "--sample", "80"]
    truth.main([*asked, "--output", str(tmp_path / "truth.json")])
    bands = json.loads((tmp_path / "truth.json").read_text())["bands"]
    assert [(band["first"], band["last"]) for band in bands] == [(0, 0), (1, 1), (2, 4), (5, 9), (10, 19)]
    assert all(0 <= band["agreement"] <= 1 and 0 <= band["scenes"] < 0.2 and 0 <= band["alike"] <= 1 for band in bands)
    assert "2..4" in capsys.readouterr().out
