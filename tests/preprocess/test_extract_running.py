"""tagsds-extract as a command: resuming, identity, finding and decoding pictures."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from pathlib import Path

import pytest
from PIL import Image
from tiny_inputs import load
from tiny_vision import TinyPictures, copied

from preprocess import extract, pack
from preprocess.extractors.batches import ahead, batches
from preprocess.extractors.source import ExtractSource
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.vision.pictures import decode


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
