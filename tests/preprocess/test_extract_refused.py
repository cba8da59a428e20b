"""tagsds-extract with what it refuses: code in a model's files, models and inputs that do not fit, each with its sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_inputs import load
from tiny_vision import TinyPictures, copied

from preprocess import extract
from preprocess.extractors.source import ExtractSource
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.vision import checkpoint


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_weights_as_bin_are_tensors_only(tiny: TinyPictures, models: Path) -> None:
    model, marker = copied(models, "vit", tiny.folder), tiny.folder / "marker"
    extract.run(tiny.arguments(models / "vit"))
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    extract.run(tiny.arguments(model, out="bin"))
    same = [load(tiny.folder / out, "train")[f"{1:012d}"]["regions.npy"] for out in ("out", "bin")]
    np.testing.assert_array_equal(*same)
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil(marker)}))
    with pytest.raises(UserError, match=r"pytorch_model.bin is damaged, or holds more than tensors, .*as safetensors.$"):
        extract.run(tiny.arguments(model, out="evil"))
    torch.save({"weight": Evil(marker)}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin is damaged, or holds more than tensors"):
        extract.run(tiny.arguments(model, out="evil"))
    assert not marker.exists()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_with_a_model_is_not_run(tiny: TinyPictures, models: Path, file: str) -> None:
    model, marker = copied(models, "vit", tiny.folder), tiny.folder / "marker"
    (model / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    settings = json.loads((model / file).read_text())
    settings["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoImageProcessor": "evil.Processor"}
    settings["model_type" if file == "config.json" else "image_processor_type"] = "Unheard"
    (model / file).write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"does not load as a vision model|describes no image processor that loads"):
        extract.run(tiny.arguments(model))
    assert not marker.exists()


def test_a_model_by_its_name(tiny: TinyPictures, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's folder is asked for JSON files and weights alone."""
    asked: list[list[str]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if name != "someone/vit":
            raise OSError("no such name")
        return str(models / "vit")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert checkpoint.find_vision_checkpoint("someone/vit").folder == models / "vit" and asked == [["*.json", "model*.safetensors"]]
    with pytest.raises(UserError, match=r"--model someone/else is no folder, and not a name that could be loaded"):
        extract.run(tiny.arguments("someone/else"))


def test_the_processor_of_a_newer_folder(tiny: TinyPictures, models: Path) -> None:
    """processor_config.json holds the image processor's settings one level down."""
    model = copied(models, "clip", tiny.folder)
    settings = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").unlink()
    (model / "processor_config.json").write_text(json.dumps({"image_processor": settings, "processor_class": "CLIPProcessor"}))
    extract.run(tiny.arguments(model))
    extract.run(tiny.arguments(models / "clip", out="plain"))
    assert sha256_of(tiny.folder / "out" / "train-000001.tar") == sha256_of(tiny.folder / "plain" / "train-000001.tar")


def settings(model: Path, file: str, **changes: object) -> None:
    read = json.loads((model / file).read_text())
    (model / file).write_text(json.dumps({**read, **changes}))


def drop_weight(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("name", "spoil", "more", "match"),
    [
        ("vit", lambda m: (m / "config.json").unlink(), [], r"config.json does not exist; give a folder written by save"),
        ("vit", lambda m: (m / "config.json").write_text("{"), [], r"config.json is not valid JSON .*copy it again"),
        ("vit", lambda m: (m / PROCESSOR).unlink(), [], r"has no preprocessor_config.json, which says how .*published"),
        ("vit", lambda m: (m / "model.safetensors").unlink(), [], r"holds neither model\*.safetensors nor pytorch_model"),
        ("vit", lambda m: (m / "model.safetensors").write_bytes(b"1234"), [], r"does not load as a vision model .*copy the model"),
        ("vit", drop_weight, [], r"the weights lack embeddings.cls_token \(and 0 more\), which would be random; check --kind grid"),
        ("vit", lambda m: settings(m, "config.json", hidden_size=32), [], r"does not load|which would be random"),
        ("vit", lambda m: settings(m, "config.json", model_type="unheard"), [], r"does not load as a vision model"),
        ("vit", lambda m: settings(m, PROCESSOR, image_processor_type="Unheard"), [], r"describes no image processor that loads"),
        ("vit", lambda m: settings(m, PROCESSOR, size={"height": 40, "width": 32}), [],
         r"0005.jpg: .*preprocessor_config.json makes 32 x 40 pixels of it where the model takes 32 x 32; set size and crop"),
        ("dinov2", lambda m: settings(m, PROCESSOR, size={"shortest_edge": 30}), [], r"pads its 45 x 30 pixels to 40 x 40, so"),
        ("dinov2", lambda m: settings(m, PROCESSOR, crop_size={"height": 4, "width": 40}), [],
         r"makes 40 x 4 .*less than one patch"),
        ("vit", lambda m: settings(m, PROCESSOR, image_processor_type="Siglip2ImageProcessor"), [],
         r"not \[3, height, width\]; give"),
        ("vit", None, ["--kind", "detector"], r"does not load as a detector .*check --kind"),
        ("detr", None, ["--kind", "grid"], r"config.json: a detr model has no patches of one size; kind grid takes"),
        ("yolos", None, ["--kind", "grid"], r"copy: the model's output has shape \[2, 24, 16\] for 2 x 4 patches; kind grid takes"),
        ("detr", None, ["--pool", "2"], r"--pool 2 is for kind grid, and .* is a detector; leave it out"),
        ("detr", lambda m: settings(m, PROCESSOR, do_center_crop=True, crop_size={"height": 32, "width": 32}), [],
         r"preprocessor_config.json crops pictures, so that .*set do_center_crop to false"),
        ("vit", None, ["--device", "cuda:77"], r"--device cuda:77 is not there; use --device auto, or cpu"),
        ("vit", None, ["--device", "nonsense"], r"--device nonsense is not there"),
    ],
)  # fmt: skip
def test_sentences_about_models(tiny: TinyPictures, models: Path, name: str, spoil, more: list[str], match: str) -> None:
    model = copied(models, name, tiny.folder)
    if spoil is not None:
        spoil(model)
    with pytest.raises(UserError, match=match) as caught:
        extract.run(tiny.arguments(model, *more))
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_missing_package_is_named(tiny: TinyPictures, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(*_: object, **__: object) -> None:
        raise ImportError("TimmBackbone requires the timm library but it was not found.\nInstall it.")

    monkeypatch.setattr(checkpoint.AutoModelForObjectDetection, "from_pretrained", needs)
    with pytest.raises(UserError, match=r"detr: the model needs a package that is missing \(TimmBackbone requires"):
        extract.run(tiny.arguments(models / "detr"))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda f: [p.unlink() for p in (f / "pictures").glob("*5.jpg")],
         r"pictures: the picture 0+5.jpg of image 0+5 of split 'train' is missing; copy it there, or remove .*split.json"),
        (lambda f: [p.unlink() for p in (f / "pictures").iterdir()], r"is missing, as are the pictures of 6 other images; copy"),
        (lambda f: (f / "pictures").rename(f / "moved"), r"pictures is no folder; give the folder of the pictures to --pictures"),
        (lambda f: (f / "captions.json").unlink(), r"captions.json does not exist; check the path"),
        (lambda f: (f / "split.json").write_text('{"train": []}'), r"split.json names no images; list some for a split"),
    ],
)  # fmt: skip
def test_sentences_about_inputs_come_before_the_model_is_read(tiny: TinyPictures, spoil, match: str) -> None:
    spoil(tiny.folder)
    with pytest.raises(UserError, match=match):
        extract.run(tiny.arguments("no/model"))


def test_the_command_ends_with_a_sentence(
    tiny: TinyPictures, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tiny.folder / "split.json").unlink()
    monkeypatch.setattr("sys.argv", ["tagsds-extract", *tiny.arguments(models / "vit")])
    with pytest.raises(SystemExit, match="2"):
        extract.main()
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.endswith("split.json does not exist; check the path.\n")
    with pytest.raises(SystemExit, match="2"):
        extract.run(tiny.arguments(models / "vit", "--min-regions", "20", "--max-regions", "10"))
    assert "--min-regions 20 is more than --max-regions 10" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(tiny: TinyPictures, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ExtractSource, "extract", interrupted)
    with pytest.raises(UserError, match="the same command continues"):
        extract.run(tiny.arguments(models / "vit"))


@pytest.mark.parametrize("threshold", ["2", "-1", "nan"])
def test_a_threshold_is_a_share(tiny: TinyPictures, models: Path, threshold: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        extract.run([*tiny.arguments(models / "detr"), f"--threshold={threshold}"])
    assert "must be from 0 to 1" in capsys.readouterr().err


def test_classes_that_are_not_numbered_from_0(tiny: TinyPictures, models: Path) -> None:
    model = copied(models, "detr", tiny.folder)
    config = json.loads((model / "config.json").read_text())
    named = {str(int(i) + 1): name for i, name in config["id2label"].items()}
    (model / "config.json").write_text(json.dumps(config | {"id2label": named, "label2id": {}}))
    with pytest.raises(UserError, match="id2label does not number its classes from 0"):
        extract.run(tiny.arguments(model))
