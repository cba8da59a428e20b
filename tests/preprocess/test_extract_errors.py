"""What is wrong with a model folder, a picture or a call is said in one sentence, before any picture is run."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch

from preprocess import extract
from tagsds.data.shards import read_manifest
from tagsds.errors import UserError
from tests.preprocess import vision_models as tiny


@pytest.fixture
def call(tmp_path):
    """Arguments of a call that works, to be spoilt: pictures, a ViT, a split."""
    tiny.write_pictures(tmp_path / "pictures")
    tiny.write_model(tmp_path / "model", "vit")
    tiny.write_split(tmp_path / "split.json", ["a", "b", "c", "d"], ["e"])
    return ["--pictures", f"{tmp_path}/pictures", "--model", f"{tmp_path}/model", "--split", f"{tmp_path}/split.json",
            "--out", f"{tmp_path}/out", "--spans", "rules"]  # fmt: skip


def sentence(call, *more):
    with pytest.raises(UserError) as caught:
        extract.run([*call, *more])
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_pictures(call, tmp_path):
    folder = tmp_path / "pictures"
    assert "is no folder" in sentence([*call, "--pictures", f"{tmp_path}/nowhere"])
    (folder / "b.png").rename(tmp_path / "b.png")
    assert "holds no picture of image b of 'train' (and 0 others)" in sentence(call)
    (tmp_path / "b.png").rename(folder / "b.png")
    shutil.copy(folder / "a.jpg", folder / "more" / "a.png")
    assert "are both pictures of image a" in sentence(call)
    (folder / "more" / "a.png").unlink()
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    said = sentence(call)
    assert "a.jpg is no whole picture" in said and "--broken-pictures skip" in said


def test_broken_pictures_can_be_left_out(call, tmp_path, capsys):
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"no picture")
    (tmp_path / "pictures" / "e.jpg").write_bytes(b"")
    extract.run([*call, "--broken-pictures", "skip"])
    assert capsys.readouterr().err.count("skipped: ") == 2
    assert {name: split["images"] for name, split in read_manifest(tmp_path / "out").splits.items()} == {"train": 3}


def test_model_folders(call, tmp_path):
    model = tmp_path / "model"
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in sentence([*call, "--model", f"{tmp_path}/empty"])
    config = json.loads((model / "config.json").read_text())
    (model / "preprocessor_config.json").rename(tmp_path / "kept.json")
    assert "has no readable preprocessor_config.json" in sentence(call)
    (tmp_path / "kept.json").rename(model / "preprocessor_config.json")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:100])
    assert "weights of --model" in sentence(call) and "copy them again" in sentence(call)
    (model / "model.safetensors").write_bytes(weights)
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lacks 16 weights of its config" in sentence(call)
    (model / "config.json").write_text("{")
    assert "cannot be read as a model of transformers" in sentence(call)
    (model / "config.json").write_text(json.dumps(config))
    assert "of type 'vit', which detects no objects; use --kind grid" in sentence(call, "--kind", "detector")
    assert not (tmp_path / "out").exists()


def test_a_model_without_patches(call, tmp_path):
    from transformers import ResNetModel

    folder = tmp_path / "resnet"
    ResNetModel(tiny._backbone()).save_pretrained(folder)
    shutil.copy(tmp_path / "model" / "preprocessor_config.json", folder)
    assert "has no patch_size in its config" in sentence([*call, "--model", str(folder)])


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_with_code_in_them_are_not_run(call, tmp_path):
    model = tmp_path / "model"
    (model / "model.safetensors").unlink()
    torch.save({"x": Trap(tmp_path / "sprung")}, model / "pytorch_model.bin")
    assert "weights of --model" in sentence(call)
    assert not (tmp_path / "sprung").exists()


def test_code_of_the_folder_is_not_run(call, tmp_path):
    model = tmp_path / "model"
    config = json.loads((model / "config.json").read_text())
    named = {"AutoConfig": "trap.Config", "AutoModel": "trap.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "trap", "auto_map": named}))
    (model / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    assert "cannot be read as a model of transformers" in sentence(call)
    assert not (tmp_path / "sprung").exists()


def test_calls(call, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        extract.run([*call, "--min-regions", "9", "--max-regions", "3"])
    assert "--min-regions is above --max-regions" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["tagsds-extract", *call, "--pictures", "nowhere"])
    with pytest.raises(SystemExit) as caught:
        extract.main()
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("error: --pictures nowhere")
