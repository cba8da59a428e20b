"""Pictures as input of the Python interface: their regions against what tagsds-extract packed of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_vision import TinyPictures, copied

import tagsds
from preprocess import extract
from tagsds.data.shards import load_bank
from tests.trained import save_run

SENTENCE = "a red dog"


def corpus_of(tiny: TinyPictures, model: Path, *more: str) -> tuple[Path, Path]:
    """The corpus of the pictures by a vision model, and a run of an encoder on it."""
    extract.run(tiny.arguments(model, *more))
    save_run(tiny.folder / "run", tiny.folder / "out")
    return tiny.folder / "out", tiny.folder / "run"


@pytest.mark.parametrize(
    ("name", "more"),
    [("vit", ["--pool", "2"]), ("detr", ["--threshold", "0.4", "--min-regions", "3"]), ("dinov2", ["--dtype", "bf16"])],
)
def test_a_picture_has_the_features_that_were_packed(tiny: TinyPictures, models: Path, name: str, more: list[str]) -> None:
    corpus, run = corpus_of(tiny, models / name, *more)
    retriever = tagsds.load(run, corpus, "cpu", split="train")  # the manifest names the model
    bank = load_bank(corpus, "train")[0]
    for row, number in enumerate(tiny.split["train"]):
        path = next((tiny.folder / "pictures").glob(f"{number:012d}.*"))
        features, boxes = retriever.gallery.regions(path)
        a, b = int(bank.regions.offsets[row]), int(bank.regions.offsets[row + 1])
        assert features.dtype == torch.float16
        slack = 2**-6 if "bf16" in more else 2**-10  # of float16, and of the products of another batch
        torch.testing.assert_close(features, bank.regions.values[a:b], rtol=slack, atol=slack)
        torch.testing.assert_close(boxes, bank.boxes[a:b], rtol=0, atol=1e-5)
        if not more[1].startswith("bf"):
            key = bank.keys[row]
            expected = retriever.score(key, SENTENCE)
            shown = [path, str(path), Image.open(path)]  # a path, a string that is one, an opened picture
            torch.testing.assert_close(retriever.score(shown, SENTENCE), expected.expand(3, 1), rtol=1e-3, atol=1e-4)
    assert torch.equal(retriever.score(bank.keys[0], SENTENCE), retriever.score([bank.keys[0]], SENTENCE))


def test_every_call_takes_pictures(tiny: TinyPictures, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, run = corpus_of(tiny, models / "vit")
    retriever = tagsds.load(run, corpus, "cpu", split="train", vision=models / "vit")
    path, key = next((tiny.folder / "pictures").glob(f"{5:012d}.*")), f"{5:012d}"
    hits, expected = retriever.search(path, 3), retriever.search(key, 3, by="image")
    assert [hit.caption for hit in hits] == [hit.caption for hit in expected]
    assert retriever.search(str(path), 3, by="image") == hits
    words, same = retriever.proofread(path, SENTENCE), retriever.proofread(key, SENTENCE)
    assert [word.text for word in words] == SENTENCE.split()
    assert [word.suspicion for word in words] == pytest.approx([word.suspicion for word in same], abs=1e-3)
    assert retriever.write_negatives(path, "a red dog , image 5", 2).caption == "a red dog , image 5"
    monkeypatch.chdir(tiny.folder / "pictures")
    assert retriever.score((path.name, path), SENTENCE).shape == (2, 1)  # a file that is there; in a tuple of images


def fails(message: str, ask) -> None:
    with pytest.raises(tagsds.UserError, match=message):
        ask()


def test_what_a_user_is_told(tiny: TinyPictures, models: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = copied(models, "vit", tiny.folder)
    corpus, run = corpus_of(tiny, model)
    path = next((tiny.folder / "pictures").glob(f"{5:012d}.*"))
    moved = shutil.move(model, tmp_path_factory.mktemp("moved") / "vit")
    retriever = tagsds.load(run, corpus, "cpu", split="train")  # captions and keys need no vision model
    fails(
        r"the vision model of .* is not on this disk; give its folder: load\(..., vision=FOLDER\)",
        lambda: retriever.score(path, SENTENCE),
    )
    found = tagsds.load(run, corpus, "cpu", split="train", vision=moved)
    assert found.score(path, SENTENCE).shape == (1, 1)
    fails(r"is not what .* was extracted with", lambda: tagsds.load(run, corpus, "cpu", split="train", vision=models / "dinov2"))
    fails(r"vision= .*nowhere is no folder", lambda: tagsds.load(run, corpus, "cpu", split="train", vision=tiny.folder / "nowhere"))
    fails(r"a picture needs the corpus", lambda: tagsds.load(run).score(path, SENTENCE))
    fails(r"a picture needs the corpus", lambda: tagsds.load(run, vision=moved))
    (tiny.folder / "broken.jpg").write_bytes(path.read_bytes()[:60])
    fails(r"broken.jpg: the picture cannot be decoded", lambda: found.score(tiny.folder / "broken.jpg", SENTENCE))
    fails(r"nowhere.jpg does not exist", lambda: found.score(tiny.folder / "nowhere.jpg", SENTENCE))
    fails(r"image 'nowhere.jpg' is not in split 'train'", lambda: found.score("nowhere.jpg", SENTENCE))
    fails(r"image 'x+' is not in split", lambda: found.score("x" * 300 + ".jpg", SENTENCE))
    fails(r"image 'a\x00b.jpg' is not in split", lambda: found.score("a\0b.jpg", SENTENCE))
    manifest = json.loads((corpus / "manifest.json").read_text())
    for change, message in (
        ({"command": "tagsds-pack"}, "were not made by tagsds-extract, so none can be made alike; give Regions"),
        ({"arguments": {"kind": "grid", "model": 3}}, r"does not say how its features were made \(arguments.model is 3"),
        ({"model": ""}, "is not named in the manifest; give its folder"),
    ):
        changed = manifest | {"made_by": manifest["made_by"] | change}
        (corpus / "manifest.json").write_text(json.dumps(changed))
        fails(message, lambda: tagsds.load(run, corpus, "cpu", split="train").score(path, SENTENCE))
