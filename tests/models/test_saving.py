"""Saving and loading as a Hugging Face model; fresh weights."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from tagsds.models import UniterConfig, UniterModel
from tagsds.models.load import load_model
from tests.models.plain_uniter import RAGGED, REGION_DIM, assert_tied, config, model_of, pairs_of


@pytest.mark.parametrize("load", [UniterModel.from_pretrained, AutoModel.from_pretrained])
def test_saving_keeps_everything(tmp_path, load):
    model, pairs = model_of(trained_heads=["itm", "mlm"]), pairs_of(**RAGGED, masked=True)
    assert_tied(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = load(tmp_path).eval()
    assert type(loaded) is UniterModel
    assert_tied(loaded)
    assert loaded.config.trained_heads == ["itm", "mlm"] and loaded.config.region_dim == REGION_DIM
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # loaded weights lie in the mapped file at any address, and a sum's last bit depends on the alignment: copy both
    model, loaded = copy.deepcopy(model), copy.deepcopy(loaded)
    states = model(pairs)
    assert torch.equal(states, loaded(pairs))
    for head in ("mlm", "correct", "itm", "rank", "discriminate", "region_class"):
        assert torch.equal(getattr(model, head)(states), getattr(loaded, head)(states)), head
    assert torch.equal(model.score(states), loaded.score(states))


def test_a_step_after_loading_moves_both_ends_of_the_tie(tmp_path):
    model_of().save_pretrained(tmp_path)
    loaded = UniterModel.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.text_embedding.word.weight[7] += 1
    assert torch.equal(loaded.mlm.decoder.weight[7], loaded.text_embedding.word.weight[7])
    assert torch.equal(loaded.correct.decoder.weight[7], loaded.text_embedding.word.weight[7])


def test_config_round_trip(tmp_path):
    config(trained_heads=["itm"]).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is UniterConfig
    ours, theirs = config(trained_heads=["itm"]).to_diff_dict(), loaded.to_diff_dict()
    assert ours == theirs and theirs["trained_heads"] == ["itm"] and theirs["region_dim"] == REGION_DIM


def test_fresh_weights_are_berts():
    torch.manual_seed(0)
    fresh = UniterModel(config(vocab_size=2000, hidden_size=64, intermediate_size=256))
    assert_tied(fresh)
    for name, parameter in fresh.named_parameters():
        if parameter.dim() == 2 and parameter.numel() > 1000:
            assert abs(parameter.std().item() - 0.02) < 0.002, name
        elif name.endswith(("norm.weight",)):
            assert (parameter == 1).all(), name
        elif name.endswith("bias") or name.endswith("mask"):
            assert not parameter.any(), name


def older(folder):
    """A folder as it was written before the discrimination head had a version: column 1 = replaced, no key in config.json."""
    model = model_of(trained_heads=["rank", "discriminate"])
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("discriminate_version") == 2
    path.write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("load", [UniterModel.from_pretrained, AutoModel.from_pretrained, load_model])
def test_an_older_discrimination_head_is_turned_on_loading(tmp_path, load):
    model, pairs = older(tmp_path), pairs_of(**RAGGED)
    loaded = load(tmp_path)
    states = model(pairs)
    assert torch.equal(loaded.discriminate(states), model.discriminate(states).flip(-1))
    assert torch.equal(loaded.rank.weight, model.rank.weight)
    loaded.save_pretrained(tmp_path / "again")  # in the published order, and marked so: turned once
    again = load(tmp_path / "again")
    assert again.config.discriminate_version == 2
    assert torch.equal(again.discriminate.weight, loaded.discriminate.weight)


def test_an_older_head_is_turned_with_loading_info(tmp_path):
    model = older(tmp_path)
    loaded, info = UniterModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(loaded.discriminate.bias, model.discriminate.bias.flip(0))
