"""What is damaged: each format as a tiny valid folder, and the public function by which the commands read it."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from preprocess.verify import verify_corpus
from tagsds import evaluate
from tagsds.config import RunConfig, load_config, save_config
from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import load_tokenizer
from tagsds.data.wordpiece import wordpiece_tokenizer
from tagsds.engine.ds_config import offloads, read_ds_config, zero_stage
from tagsds.engine.resume import find
from tagsds.evaluators.edits import Edits, EditsSettings
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.evaluators.protocol import Plan
from tagsds.files import sha256_of, write_checksums
from tagsds.formats.candidates import Candidates
from tagsds.formats.manifest import files_of_tokenizer, read_manifest
from tagsds.models import UniterModel
from tagsds.models.card import Card, record_recalls
from tagsds.models.convert import run as convert
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config
from tagsds.models.published.words import read_words
from tagsds.prepare import different_settings, pairs_of
from tagsds.ranks import World
from tagsds.report import write_report
from tests import tiny_corpus as tiny
from tests.candidates import candidates_of, write_candidates
from tests.data.corpus import write_corpus
from tests.engine.stored import saved
from tests.models import published_matchers, published_uniter
from tests.models.matcher_world import matcher_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """One format.

    make      writes a valid folder
    load      reads it as the commands do; what it returns is compared with that of the undamaged folder
    damaged   patterns of the files that are damaged
    guarded   a checksum covers these files: another value than the undamaged one is a failure
    reseal    (folder, name of the damaged file) -> None: makes the checksums agree with the damaged file, so that the content is
              looked at
    weight    how often it is chosen
    """

    name: str
    make: Callable[[Path], object]
    load: Callable[[Path], Any]
    damaged: tuple[str, ...]
    guarded: bool = False
    reseal: Callable[[Path, str], None] | None = None
    weight: int = 1


def digest(value: Any) -> str:
    """Of a value's contents: equal for equal values. Floats by their bits."""
    found = hashlib.sha256()
    for part in parts_of(value):
        found.update(part)
    return found.hexdigest()[:24]


def parts_of(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{list(value.shape)}".encode() + value.detach().contiguous().numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield from parts_of({name: one for name, one in vars(value).items() if name not in ("folder", "file")})
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield str(key).encode("utf-8", "surrogatepass") + b":"
            yield from parts_of(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from parts_of(one)
            yield b","
    else:
        yield repr(value).encode("utf-8", "surrogatepass")


# --- corpora ------------------------------------------------------------------------------------------------------------


def make_corpus(folder: Path) -> None:
    """Five images with boxes and soft labels in two shards, edits, and the checksums of the tokenizer."""
    write_corpus(folder, {"train": 5}, per_shard=3, classes=3)
    path = folder / "edits" / "train" / "colour.json"
    pair = {"caption": "a red dog", "negative_caption": "a blue dog"}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({str(n): {"filename": f"train-{n:07d}.jpg", **pair} for n in range(5)}))
    edit_manifest(folder, tokenizer_files=files_of_tokenizer(folder / "tokenizer"),
                  edits={"train": {"colour": {"pairs": 5, "sha256": sha256_of(path)}}})  # fmt: skip


def make_imported(folder: Path) -> None:
    """Captions that came as ids, with spans over them."""
    from tests.data.test_shards import rewrite

    write_corpus(folder, {"train": 3}, per_shard=3)

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("captions.json"):
            return data
        captions = json.loads(data)
        for caption in captions:
            caption["ids"] = list(range(5, 5 + len(caption["text"].split())))
            caption["spans"] = [{"kind": "object", "pieces": [0]}]
        return json.dumps(captions).encode()

    rewrite(folder, change, split="train")
    edit_manifest(folder, imported_ids=True)


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reseal_corpus(folder: Path, name: str) -> None:
    """The manifest's sizes and checksums as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in manifest["splits"].values():
        for shard in part["shards"]:
            path = folder / shard["file"]
            if path.is_file():
                shard["bytes"], shard["sha256"] = path.stat().st_size, sha256_of(path)
    manifest["tokenizer_files"] = files_of_tokenizer(folder / "tokenizer")
    for split, kinds in manifest.get("edits", {}).items():
        for kind, entry in kinds.items():
            path = folder / "edits" / split / f"{kind}.json"
            entry["sha256"] = sha256_of(path) if path.is_file() else entry["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def load_corpus(folder: Path) -> Any:
    bank, manifest = load_bank(folder, "train", cache="none")
    check_bank(bank, manifest.vocab_size)
    return bank_values(bank)


def load_cached(folder: Path) -> Any:
    bank, manifest = load_bank(folder, "train", cache=str(folder / "cache"))
    check_bank(bank, manifest.vocab_size)
    return bank_values(bank)


def make_cached(folder: Path) -> None:
    make_corpus(folder)
    load_cached(folder)


def bank_values(bank: Bank) -> dict[str, Any]:
    ragged = {name: getattr(bank, name) for name in ("tokens", "spans", "regions", "captions_of_image")}
    values = {name: (rows.values, rows.lengths) for name, rows in ragged.items()}
    strings = {name: list(getattr(bank, name)) for name in ("texts", "keys", "caption_ids")}
    return values | strings | {"boxes": bank.boxes, "classes": bank.classes, "owner": bank.image_of_caption}


def check_bank(bank: Bank, vocab_size: int) -> None:
    """What everything behind the loader relies on."""
    tokens, spans, regions = bank.tokens, bank.spans, bank.regions
    assert 0 <= int(tokens.values.min()) and int(tokens.values.max()) < vocab_size and int(tokens.lengths.min()) >= 2
    for rows in (tokens, spans, regions, bank.captions_of_image):
        assert int(rows.lengths.min()) >= 0 and int(rows.lengths.sum()) == len(rows.values)
    longest = torch.repeat_interleave(tokens.lengths, spans.lengths)
    assert bool(((spans.values[:, 1] > 0) & (spans.values[:, 1] < longest)).all())
    assert regions.values.dtype == torch.float16 and bool(regions.values.isfinite().all()) and int(regions.lengths.min()) >= 1
    assert -1e-3 <= float(bank.boxes.min()) and float(bank.boxes.max()) <= 1.001 and len(bank.boxes) == len(regions.values)
    assert len(set(bank.keys)) == len(bank.keys) == bank.num_images and len(bank.texts) == bank.num_captions == len(tokens)
    if bank.classes is not None:
        assert len(bank.classes) == len(regions.values) and bool(((bank.classes.float().sum(1) - 1).abs() < 0.03).all())


def load_manifest(folder: Path) -> Any:
    """The manifest, then the shards by it: its counts must not lead anywhere but to a sentence."""
    manifest = read_manifest(folder)
    for split in list(manifest.splits):
        manifest.shards(split)
        manifest.caption_pieces(split)
    bank, _ = load_bank(folder, "train", cache="none")
    check_bank(bank, manifest.vocab_size)
    return asdict(manifest) | bank_values(bank)


def load_verified(folder: Path) -> Any:
    return verify_corpus(folder)


# --- tokenizers ---------------------------------------------------------------------------------------------------------


def make_tokenizer(folder: Path) -> None:
    tiny.tokenizer().save_pretrained(folder)


def use_tokenizer(tokenizer: Any) -> Any:
    encoded = tokenizer(["a red dog near the café", ""], return_offsets_mapping=True)
    size, ids = len(tokenizer), encoded["input_ids"]
    assert all(0 <= number < size for row in ids for number in row)
    return size, ids, encoded["offset_mapping"]


def load_a_tokenizer(folder: Path) -> Any:
    return use_tokenizer(load_tokenizer(folder))


def make_vocabulary(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(tiny.WORDS) + "\n")


def load_vocabulary(folder: Path) -> Any:
    return use_tokenizer(wordpiece_tokenizer(str(folder / "vocab.txt")))


# --- models -------------------------------------------------------------------------------------------------------------


def make_export(folder: Path) -> None:
    tiny.write_checkpoint(folder)
    Card(kind="tagsds_uniter", recipe={"recipe": "tags-base-coco"}, commit="abc", version="0").write(folder)
    write_checksums(folder)


def make_older_export(folder: Path) -> None:
    make_export(folder)
    (folder / "checksums.json").unlink()


def make_matcher(folder: Path) -> None:
    matcher_of("vsrn", vocab_size=len(tiny.WORDS), region_dim=8).float().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def load_export(folder: Path) -> Any:
    """As tagsds-evaluate does: config, corpus against it, weights; then one forward pass by what was loaded."""
    found, _ = find_checkpoint(folder)
    config = read_config(found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a folder without a tokenizer
        check_data(config, found, corpus_of(folder))
    model = load_model(found)
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    return {name: value for name, value in model.state_dict().items()} | {"config": model.config.to_dict()}


def corpus_of(folder: Path) -> Any:
    """The manifest of the corpus beside the case's folder, which is never damaged."""
    place = folder.parent / "corpus-of-models"
    if not place.is_dir():
        write_corpus(place, {"train": 2})
    return read_manifest(place)


def load_card(folder: Path) -> Any:
    recalls = {f"{side}_r{n}": 1.0 for side in ("text", "image") for n in (1, 5, 10)} | {"rsum": 6.0}
    return record_recalls(folder, "test", Path("data"), {"images": 5, "recalls": recalls}), (folder / "README.md").read_text()


def load_way_back(folder: Path) -> Any:
    """tagsds-convert, from a folder to a file."""
    out = folder.parent / "back.pt"
    out.unlink(missing_ok=True)
    convert([str(folder / "ours"), "--out", str(out)])
    return torch.load(out, weights_only=True)


def make_way_back(folder: Path) -> None:
    make_published(folder)
    convert([str(folder / "uniter.pt"), "--out", str(folder / "ours")])
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    (folder / "ours" / "checksums.json").unlink()


# --- checkpoints by others ----------------------------------------------------------------------------------------------

PUBLISHED = ("uniter.pt", "uniter.pth", "uniter.safetensors", "vsrn.pt", "scan.pth")


def make_published(folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = published_uniter.state_dict(width=64, vocab=12, inner=16, region_dim=6)
    torch.save(state, folder / "uniter.pt")
    torch.save(state, folder / "uniter.pth", _use_new_zipfile_serialization=False)
    save_file({name: value.clone() for name, value in state.items()}, folder / "uniter.safetensors")
    torch.save(published_matchers.checkpoint("vsrn"), folder / "vsrn.pt")
    torch.save(published_matchers.checkpoint("scan"), folder / "scan.pth", _use_new_zipfile_serialization=False)


def load_published(folder: Path) -> Any:
    """tagsds-convert, from each file to a folder. A file with the bytes of an earlier case is not converted again."""
    beside = folder.parent / "converted.json"
    known = json.loads(beside.read_text()) if beside.is_file() else {}
    found = {}
    for name in PUBLISHED:
        path, out = folder / name, folder.parent / "converted"
        key = f"{name} {sha256_of(path)}" if path.is_file() else ""
        if key not in known:
            shutil.rmtree(out, ignore_errors=True)
            convert([str(path), "--out", str(out)])
            known[key] = digest(load_model(out).state_dict())
        found[name] = known[key]
    beside.write_text(json.dumps(known))
    return found


def make_words(folder: Path) -> None:
    from tests.models.test_published_words import Vocabulary  # type: ignore[attr-defined]

    folder.mkdir(parents=True)
    words = ["<pad>", "<start>", "<end>", "<unk>", *tiny.THINGS, *tiny.COLOURS]
    ids = {word: number for number, word in enumerate(words)}
    (folder / "words.json").write_text(json.dumps({"word2idx": ids, "idx": len(ids)}))
    held = Vocabulary.__new__(Vocabulary)
    held.word2idx, held.idx2word, held.idx = ids, {number: word for word, number in ids.items()}, len(ids)
    (folder / "words.pkl").write_bytes(pickle.dumps(held, protocol=2))


def load_words(folder: Path) -> Any:
    return read_words(folder / "words.json"), read_words(folder / "words.pkl")


# --- candidates, pairs, results, settings -------------------------------------------------------------------------------


def make_candidates(folder: Path) -> None:
    write_corpus(folder / "data", {"train": 4})
    bank, _ = load_bank(folder / "data", "train", cache="none")
    (folder / "mined").mkdir()
    write_candidates(folder / "mined", folder / "data", "train", candidates_of(bank, 6, 3))


def load_candidates(folder: Path) -> Any:
    found = Candidates.read(folder / "mined", read_manifest(folder / "data"), "train")
    for table, count in ((found.captions_of_image, 20), (found.images_of_caption, 4)):
        assert table.dtype == torch.int32 and -1 <= int(table.min()) and int(table.max()) < count
    return found.captions_of_image, found.images_of_caption


def reseal_candidates(folder: Path, name: str) -> None:
    path = folder / "mined" / "candidates.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {n: sha256_of(path.parent / n) if (path.parent / n).is_file() else "" for n in manifest["sha256"]}
    path.write_text(json.dumps(manifest))


def load_edits(folder: Path) -> Any:
    """`--pairs` of tagsds-evaluate."""
    files = [folder / "edits" / "train"]
    Edits(EditsSettings(files=tuple(files))).check(Plan(read_manifest(folder), "train", UniterModel, None))
    return read_pairs(files, [f"train-{n:07d}" for n in range(5)], skip_missing=True)


def make_run(folder: Path) -> None:
    """A run as training and tagsds-evaluate leave it."""
    folder.mkdir(parents=True)
    rows = [{"step": n, "time_s": float(n), "loss/total": 1.0 / n, "lr": 1e-4} for n in range(1, 6)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_config(load_config("tagsdc-base-coco", ["seed=3"]), folder / "config.yaml")
    words = [{"text": "red", "replaced": True, "suspicion": 0.7, "correction": "blue"}]
    written = [{"score": 0.3, "text": "a red dog", "words": words}]
    negatives = [{"caption": "a dog", "image": "1", "score": 0.7, "words": words, "written": written}]
    examples = {"scores": {"true": [0.5, 0.7], "synthetic": [0.1, 0.2]}, "negatives": negatives}
    (folder / "examples.json").write_text(json.dumps(examples))
    tiny.write_shards(folder.parent / "pictures", images=4)
    tiny.write_checkpoint(folder.parent / "evaluated" / "export")
    evaluate.main([
        "--checkpoint", str(folder.parent / "evaluated"), "--data", str(folder.parent / "pictures"), "--output",
        str(folder / "results-test.json"), "--pairs", str(tiny.write_edits(folder.parent / "edits" / "object.json", images=4)),
    ])  # fmt: skip


def load_report(folder: Path) -> Any:
    page = folder.parent / "report.html"
    write_report([folder], page)
    text = page.read_text()
    assert text.rstrip().endswith("</html>")
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text)


def make_recipe(folder: Path) -> None:
    folder.mkdir(parents=True)
    encoder = ("tagsdc-base-coco", "tags-base-coco", "baseline-base-coco", "published-base")
    for name in (*encoder, "coco-boxes-vsrn", "published-matcher"):
        text = (ROOT / "tagsds" / "recipes" / f"{name}.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text)
    (folder / "recipe.yaml").write_text(
        "base: tagsdc-base-coco\nbatch:\n  pairs: 4\noptimiser:\n  lr: 1e-4\n  steps: 20\nloss: {syn: 0.5}\ndata:\n  cache: none\n"
    )


def load_recipe(folder: Path) -> Any:
    config = load_config(str(folder / "recipe.yaml")), load_config(str(folder / "coco-boxes-vsrn.yaml"))
    assert all(isinstance(one, RunConfig) for one in config)
    return config


def make_settings(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_config(load_config("tagsdc-base-coco", ["seed=3", "batch.tokens=0"]), folder / "config.yaml")


def load_settings(folder: Path) -> Any:
    """A run's saved settings, as --resume compares them."""
    config = load_config("tagsdc-base-coco", ["seed=3", "batch.tokens=0"])
    saved = folder / "config.yaml"
    return different_settings(saved, config) if saved.is_file() else None, pairs_of(saved)


def make_deepspeed(folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in (ROOT / "ds_configs").glob("*.json"):
        shutil.copy(path, folder)


def load_deepspeed(folder: Path) -> Any:
    config = load_config("tagsdc-base-coco")
    found = {path.name: read_ds_config(path, config, 2, True) for path in sorted(folder.glob("*.json"))}
    return found, [(zero_stage(ds), offloads(ds)) for ds in found.values()]


def make_checkpoint(folder: Path) -> None:
    saved(folder, 4)


def load_checkpoint(folder: Path) -> Any:
    """What `--resume` takes: every file is held against its checksum before DeepSpeed unpickles it."""
    found = find(folder, World())
    assert found is not None
    return found.about, {path.name: path.read_bytes() for path in sorted(found.folder.glob("*.pt"))}


TARGETS: tuple[Target, ...] = (
    Target("manifest", make_corpus, load_manifest, ("manifest.json",), weight=4),
    Target("shards", make_corpus, load_corpus, ("*.tar",), guarded=True),
    Target("corpus's tokenizer", make_corpus, load_corpus, ("tokenizer/*",), guarded=True),
    Target("shards, checksum mended", make_corpus, load_corpus, ("*.tar",), reseal=reseal_corpus, weight=8),
    Target("shards of imported ids, checksum mended", make_imported, load_corpus, ("*.tar",), reseal=reseal_corpus, weight=4),
    Target("corpus's tokenizer, checksum mended", make_corpus, load_corpus, ("tokenizer/*",), reseal=reseal_corpus, weight=2),
    Target("tagsds-pack --verify, checksum mended", make_corpus, load_verified, ("*.tar", "manifest.json", "tokenizer/*"),
           reseal=reseal_corpus, weight=3),
    Target("cache of a corpus", make_cached, load_cached, ("cache/*/*",), guarded=True, weight=2),
    Target("tokenizer", make_tokenizer, load_a_tokenizer, ("*",), weight=3),
    Target("vocab.txt", make_vocabulary, load_vocabulary, ("vocab.txt",)),
    Target("export", make_export, load_export, ("config.json", "model.safetensors", "tokenizer*", "checksums.json"), guarded=True,
           weight=2),
    Target("export without checksums", make_older_export, load_export, ("config.json", "model.safetensors", "tokenizer*"),
           weight=5),
    Target("matcher without checksums", make_matcher, load_export, ("config.json", "model.safetensors"), weight=3),
    Target("model card", make_export, load_card, ("card.json",), weight=2),
    Target("record of the way back", make_way_back, load_way_back, ("ours/published.json",), weight=2),
    Target("published checkpoints", make_published, load_published, PUBLISHED, weight=6),
    Target("published vocabularies", make_words, load_words, ("words.*",), weight=2),
    Target("candidates", make_candidates, load_candidates, ("mined/*.npy",), guarded=True),
    Target("candidates, checksum mended", make_candidates, load_candidates, ("mined/*",), reseal=reseal_candidates, weight=3),
    Target("edits of a corpus", make_corpus, load_edits, ("edits/*/*.json",), guarded=True),
    Target("edits, checksum mended", make_corpus, load_edits, ("edits/*/*.json",), reseal=reseal_corpus, weight=2),
    Target("run in a report", make_run, load_report, ("*",), weight=4),
    Target("recipe", make_recipe, load_recipe, ("*.yaml",), weight=4),
    Target("saved settings", make_settings, load_settings, ("config.yaml",), weight=2),
    Target("DeepSpeed file", make_deepspeed, load_deepspeed, ("*.json",), weight=2),
    Target("checkpoint of a run", make_checkpoint, load_checkpoint, ("checkpoints/*/*",), guarded=True, weight=3),
)  # fmt: skip
