"""Losses of heads that know nothing are those of guessing, on both splits; the command shows them."""

from __future__ import annotations

import math

import pytest
import torch

from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.formats.manifest import read_manifest
from tagsds.objectives.settings import PretrainConfig
from tests.bench import held_out
from tests.trained import save_run


def guess(model) -> None:
    """All logits of the three heads are zero."""
    with torch.no_grad():
        for head in (model.itm, model.mlm.transform.norm, model.mlm.decoder, model.region_class.decoder):
            for name, parameter in head.named_parameters():
                if name != "weight" or head is not model.mlm.decoder:  # tied to the word embeddings
                    parameter.zero_()


def test_guessing_by_hand(world, tmp_path):
    model, manifest = save_run(tmp_path, world), read_manifest(world)
    guess(model)
    vocab = Vocabulary.of(load_tokenizer(world / "tokenizer"))
    found = held_out.losses(model, load_bank(world, "dev")[0], vocab, PretrainConfig(kl_reduction="sum"))
    # soft labels of the drawn corpus are one class: the divergence from a uniform guess is log C
    by_hand = {"itm": math.log(2), "mlm": math.log(manifest.vocab_size), "mrckl": math.log(manifest.num_classes)}
    assert found == pytest.approx(by_hand, rel=1e-4)


def test_the_command(world, tmp_path, capsys):
    save_run(tmp_path / "one", world)
    held_out.main([str(tmp_path / "one"), "--data", str(world), "--first", "20"])
    shown = capsys.readouterr().out
    assert "train mrckl" in shown and "dev itm" in shown and "one" in shown
