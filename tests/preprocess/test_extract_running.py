"""tagsds-extract as a command: resuming, identity, finding and decoding pictures, every sentence for the user."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_inputs import load
from tiny_vision import TinyPictures, save_model

from preprocess import extract, pack
from preprocess.extractors import checkpoint
from preprocess.extractors.batches import ahead, batches
from preprocess.extractors.pictures import decode
from preprocess.extractors.source import ExtractSource
from tagsds.errors import UserError
from tagsds.files import sha256_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders vit, clip, detr and yolos; not to be changed."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("vit", "clip", "dinov2", "detr", "yolos"):
        save_model(folder / name, name)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPictures:
    return TinyPictures(tmp_path)


def copied(models: Path, name: str, folder: Path) -> Path:
    """A model that a test may change."""
    target = folder / "copy"
    target.mkdir()
    for path in (models / name).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def contents(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): sha256_of(path) for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "dies_at"), [("detr", 5), ("vit", 4)])
def test_a_run_that_dies_continues_to_the_same_bytes(
    tiny: TinyPictures, models: Path, monkeypatch: pytest.MonkeyPatch, name: str, dies_at: int
) -> None:
    extract.run(tiny.arguments(models / name, out="undisturbed"))
    undisturbed, calls = contents(tiny.folder / "undisturbed"), [0]
    original = ExtractSource.extract

    def dies(self: ExtractSource, batch: list) -> list:
        calls[0] += 1
        if calls[0] == dies_at:
            raise OSError("the machine went away")
        return original(self, batch)

    monkeypatch.setattr(ExtractSource, "extract", dies)
    with pytest.raises(OSError, match="went away"):
        extract.run(tiny.arguments(models / name))
    shards = {path.name for path in (tiny.folder / "out").glob("*.tar")}
    assert "train-000000.tar" in shards and "test-000000.tar" not in shards
    asked: list[str] = []
    monkeypatch.setattr(ExtractSource, "extract", original)
    prepare = ExtractSource.prepare
    monkeypatch.setattr(ExtractSource, "prepare", lambda self, split, keys: (asked.extend(keys), prepare(self, split, keys))[1])
    extract.run(tiny.arguments(models / name, "--threads", "1"))  # how many threads decode changes nothing
    assert f"{5:012d}" not in asked and f"{7:012d}" in asked  # the finished shard is not made again
    assert contents(tiny.folder / "out") == undisturbed and len(undisturbed) > 4
    assert not (tiny.folder / "out" / ".journal").exists()


def test_a_complete_corpus_is_left_alone(tiny: TinyPictures, models: Path, capsys: pytest.CaptureFixture) -> None:
    extract.run(tiny.arguments(models / "vit"))
    before = contents(tiny.folder / "out")
    extract.run(tiny.arguments(models / "vit"))
    assert "already complete" in capsys.readouterr().out and contents(tiny.folder / "out") == before
    pack.run(["--verify", str(tiny.folder / "out")])
    assert "is sound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--pool", "2"], "pool"),
        (["--dtype", "bf16"], "dtype"),
        (["--thumbnail", "20"], "thumbnail"),
        (["--max-caption-pieces", "50"], "max_caption_pieces"),
        ("weights", "model"),
        ("processor", "model"),
        ("picture", "pictures"),
        ("captions", "inputs"),
    ],
)
def test_what_belongs_to_the_identity(tiny: TinyPictures, models: Path, change: list[str] | str, named: str) -> None:
    model = copied(models, "vit", tiny.folder)
    extract.run(tiny.arguments(model))
    if change == "weights":
        data = bytearray((model / "model.safetensors").read_bytes())
        data[len(data) // 2] ^= 1
        (model / "model.safetensors").write_bytes(data)
    elif change == "processor":
        path = model / "preprocessor_config.json"
        path.write_text(path.read_text().replace('"rescale_factor": 0.00392', '"rescale_factor": 0.00391'))
    elif change == "picture":
        with open(tiny.folder / "pictures" / f"{1:012d}.jpg", "ab") as stream:
            stream.write(b"more")
    elif change == "captions":
        path = tiny.folder / "captions.json"
        path.write_text(path.read_text().replace("red", "tan"))
    more = change if isinstance(change, list) else []
    with pytest.raises(UserError, match=rf"made from other arguments or inputs \({named}\); use --overwrite"):
        extract.run(tiny.arguments(model, *more))


def test_thumbnails_are_kept_for_people(tiny: TinyPictures, models: Path) -> None:
    extract.run(tiny.arguments(models / "vit", "--thumbnail", "20"))
    with tarfile.open(tiny.folder / "out" / "train-000000.tar") as tar:
        found = {m.name: Image.open(io.BytesIO(tar.extractfile(m).read())) for m in tar if m.name.endswith("image.jpg")}
    assert found[f"{1:012d}.image.jpg"].size == (20, 13) and found[f"{2:012d}.image.jpg"].size == (13, 20) and len(found) == 3
    pack.run(["--verify", str(tiny.folder / "out")])


# --- pictures: which file, how it is decoded


def karpathy(folder: Path, images: list[dict]) -> list[str]:
    for number, image in enumerate(images):
        image.update(split="train", sentences=[{"raw": f"a dog , {number}", "sentid": number}])
    (folder / "karpathy.json").write_text(json.dumps({"images": images}))
    return ["--split", f"{folder}/karpathy.json"]


def found_pictures(tiny: TinyPictures, models: Path) -> dict[str, str]:
    return extract.make_source(extract.parse(tiny.arguments(models / "vit"))).pictures


def test_karpathys_folder_decides_between_files_of_one_name(tiny: TinyPictures, models: Path) -> None:
    for place in ("val2014", "train2014"):
        (tiny.folder / "pictures" / place).mkdir()
        Image.new("RGB", (9, 9)).save(tiny.folder / "pictures" / place / "a.jpg")
    tiny.named = karpathy(tiny.folder, [{"filename": "a.jpg", "filepath": "val2014"}])
    assert found_pictures(tiny, models) == {"a": "val2014/a.jpg"}
    tiny.named = karpathy(tiny.folder, [{"filename": "a.jpg"}])
    with pytest.raises(UserError, match=r"image a of split 'train' may be train2014/a.jpg or val2014/a.jpg; keep one of them"):
        found_pictures(tiny, models)


def test_pictures_are_found_by_key_and_by_id(tiny: TinyPictures, models: Path) -> None:
    """Other prefixes of COCO's releases, ids as stems, other suffixes."""
    pictures = tiny.folder / "pictures"
    (pictures / "deep" / "er").mkdir(parents=True)
    (pictures / f"{1:012d}.jpg").rename(pictures / "deep" / "er" / f"COCO_train2014_{1:012d}.JPEG")
    (pictures / f"{2:012d}.jpg").rename(pictures / "2.webp")
    found = found_pictures(tiny, models)
    assert found[f"{1:012d}"] == f"deep/er/COCO_train2014_{1:012d}.JPEG" and found[f"{2:012d}"] == "2.webp"
    assert found[f"{3:012d}"] == f"{3:012d}.png"
    images = [{"id": 77, "file_name": "street.jpg"}]
    notes = [{"id": 1, "image_id": 77, "caption": "a dog"}]
    (tiny.folder / "captions.json").write_text(json.dumps({"images": images, "annotations": notes}))
    (tiny.folder / "split.json").write_text(json.dumps({"test": [77]}))
    (pictures / f"{7:012d}.jpg").rename(pictures / "77.jpg")
    assert found_pictures(tiny, models) == {"street": "77.jpg"}


def test_a_picture_is_decoded_as_it_is_seen(tmp_path: Path) -> None:
    """EXIF says: turn by 90 degrees; the left edge of the file is the top of the picture."""
    stored = Image.new("RGB", (30, 20), "blue")
    stored.paste("red", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[274] = 6
    stored.save(tmp_path / "a.png", exif=exif)
    seen = decode(tmp_path / "a.png")
    assert seen.size == (20, 30) and seen.getpixel((10, 2)) == (255, 0, 0) and seen.getpixel((10, 28)) == (0, 0, 255)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / f"a.{suffix}")
    picture = decode(tmp_path / f"a.{suffix}")
    assert (picture.mode, picture.size) == ("RGB", (8, 6)) and picture.getpixel((3, 3))[0] > 250


def test_broken_pictures_end_the_run_or_are_left_out(tiny: TinyPictures, models: Path, capsys: pytest.CaptureFixture) -> None:
    path = tiny.folder / "pictures" / f"{2:012d}.jpg"
    path.write_bytes(path.read_bytes()[:200])
    (tiny.folder / "pictures" / f"{3:012d}.png").write_text("no picture")
    with pytest.raises(UserError, match=rf"{2:012d}.jpg: the picture of image {2:012d} cannot be decoded .*pictures skip.$"):
        extract.run(tiny.arguments(models / "vit"))
    extract.run(tiny.arguments(models / "vit", "--broken-pictures", "skip", out="other"))
    told = capsys.readouterr().err
    assert f"{3:012d}.png: image {3:012d} left out" in told and f"{2:012d}.jpg: image" in told
    assert list(load(tiny.folder / "other", "train")) == [f"{n:012d}" for n in (5, 1, 4)]
    pack.run(["--verify", str(tiny.folder / "other")])


# --- batches


def test_batches_hold_one_size_and_keep_the_order() -> None:
    items = ["a1", "b1", "a2", "c1", "a3", "b2", "a4"]
    found = list(batches(items, lambda item: item[0], 2, 99))
    assert found == [["a1", "a2"], ["b1", "b2"], ["a3", "a4"], ["c1"]]


def test_few_items_wait_for_others_of_their_size() -> None:
    """With at most three waiting, the longest list goes, the oldest of equals."""
    assert list(batches("abcdbbb", str, 4, 3)) == [["a"], ["b", "b"], ["b", "b"], ["c"], ["d"]]
    assert list(batches("abbcd", str, 4, 3)) == [["b", "b"], ["a"], ["c"], ["d"]]


def test_decoding_runs_ahead_in_order_and_not_too_far() -> None:
    started, release = [], threading.Event()

    def work(number: int) -> int:
        started.append(number)
        if number == 0:
            release.wait(5)
        return number

    stream = ahead(work, range(20), threads=2, window=4)
    threading.Timer(0.05, release.set).start()
    assert next(stream) == 0 and max(started) <= 5
    assert list(stream) == list(range(1, 20))


# --- models: safety and sentences


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
    assert checkpoint.find_checkpoint("someone/vit").folder == models / "vit" and asked == [["*.json", "model*.safetensors"]]
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
        ("vit", lambda m: (m / "config.json").write_text("{"), [], r"config.json is not valid JSON .*copy the model again"),
        ("vit", lambda m: (m / PROCESSOR).unlink(), [], r"has no preprocessor_config.json, so that nobody knows .*published"),
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
