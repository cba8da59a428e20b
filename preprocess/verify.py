"""tagsds-pack --verify: checksums, counts, shapes and values of a packed folder; the first fault ends it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocess.records import SPAN_KINDS
from preprocess.shards import piece_problem, span_problem
from tagsds.data.samples import NEGATIVES, negatives_of, problem_of_caption
from tagsds.data.shard_files import read_members
from tagsds.data.vocabulary import corpus_tokenizer
from tagsds.errors import UserError
from tagsds.files import is_file, parse_json, parse_npy, sha256_of
from tagsds.formats.manifest import manifest_object, read_manifest

AGAIN = "pack again with --overwrite, or copy the file again"
NEEDED = ("regions.npy", "captions.json")
KNOWN = (*NEEDED, "boxes.npy", "scores.npy", "classes.npy", "image.jpg", "image.png", NEGATIVES)
COUNTS = ("samples", "captions", "regions")
SUM_TOLERANCE = 0.02  # of a row of float16 soft labels that should sum to 1


def verify_corpus(out: Path) -> str:
    """Check everything; a sentence with the counts, or UserError."""
    manifest = checked_manifest(out)
    tokenizer = corpus_tokenizer(read_manifest(out))
    seen: set[str] = set()
    most_regions = most_pieces = 0
    totals = []
    for split, part in manifest["splits"].items():
        pieces_of_split = 0
        sums = dict.fromkeys(COUNTS, 0)
        for shard in tqdm(part["shards"], desc=f"verify {split}", unit="shard"):
            _check_file(out / shard["file"], shard)
            counts = dict.fromkeys(COUNTS, 0)
            for key, members in read_samples(out / shard["file"]):
                where = f"{out / shard['file']}: image {key}"
                if key in seen:
                    raise UserError(f"{where} is in the corpus twice; {AGAIN}.")
                seen.add(key)
                regions, captions = check_sample(where, members, manifest)
                lengths = [len(c["ids"]) + 2 for c in captions if "ids" in c]  # without [CLS] and [SEP]
                if not lengths:
                    lengths = [len(ids) for ids in tokenizer([c["text"] for c in captions])["input_ids"]]
                pieces_of_split, most_regions = max(pieces_of_split, *lengths), max(most_regions, regions)
                for name, value in zip(COUNTS, (1, len(captions), regions)):
                    counts[name] += value
            _compare(out / shard["file"], counts, shard)
            sums = {name: sums[name] + counts[name] for name in COUNTS}
        _compare(f"{out}: split {split}", sums, {**part, "samples": part["images"]})
        said = part.get("max_caption_pieces", pieces_of_split)  # older manifests give it for the whole corpus alone
        if said != pieces_of_split:
            raise UserError(
                f"{out / 'manifest.json'} says max_caption_pieces {said} of split {split}, "
                f"the shards hold {pieces_of_split}; {AGAIN}."
            )
        most_pieces = max(most_pieces, pieces_of_split)
        totals.append(f"{split} {sums['samples']} images, {sums['captions']} captions, {sums['regions']} regions")
    for name, value in (("max_regions", most_regions), ("max_caption_pieces", most_pieces)):
        if manifest[name] != value:
            raise UserError(f"{out / 'manifest.json'} says {name} {manifest[name]}, the shards hold {value}; {AGAIN}.")
    _check_classes(out, manifest)
    _check_edits(out, manifest)
    return f"{out} is sound: {'; '.join(totals)}."


def checked_manifest(out: Path) -> dict:
    """The manifest; UserError where the folder holds no finished corpus."""
    path = out / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, so the corpus is unfinished; run the tagsds-pack command that made it again."
        )
    return manifest_object(out)


def _check_file(path: Path, shard: dict) -> None:
    """Existence, length and checksum of a shard."""
    if not is_file(path):
        raise UserError(f"{path} is missing; {AGAIN}.")
    size = path.stat().st_size
    if size != shard["bytes"]:
        state = "cut short" if size < shard["bytes"] else "too long"
        raise UserError(f"{path} is {state}: {size} bytes where the manifest says {shard['bytes']}; {AGAIN}.")
    if sha256_of(path) != shard["sha256"]:
        raise UserError(f"{path} has another checksum than the manifest says; {AGAIN}.")


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each sample of a tar, in order."""
    key: str | None = None
    members: dict[str, bytes] = {}
    for file, data in read_members(path):
        stem, _, name = file.partition(".")
        if stem != key:
            if key is not None:
                yield key, members
            key, members = stem, {}
        if name in members:
            raise UserError(f"{path}: image {stem} has {name} twice; {AGAIN}.")
        members[name] = data
    if key is not None:
        yield key, members


def check_sample(where: str, members: dict[str, bytes], manifest: dict) -> tuple[int, list[dict]]:
    """Shapes, dtypes and values of one sample; returns (regions, captions)."""
    for name in NEEDED:
        if name not in members:
            raise UserError(f"{where} lacks {name}; {AGAIN}.")
    has_boxes = manifest.get("boxes", True)  # corpora packed before there were others do not say
    if has_boxes != ("boxes.npy" in members):
        raise UserError(f"{where} {'lacks' if has_boxes else 'has'} boxes.npy against the manifest; {AGAIN}.")
    for name in members:
        if name not in KNOWN:
            raise UserError(f"{where} has the unknown member {name}; {AGAIN}.")
    arrays = {name[:-4]: _load(where, name, data) for name, data in members.items() if name.endswith(".npy")}
    n, width = len(arrays["regions"]), manifest["num_classes"]
    expected = {
        "regions": (np.float16, (n, manifest["feature_dim"])),
        "boxes": (np.float32, (n, 4)),
        "scores": (np.float16, (n,)),
        "classes": (np.float16, (n, width)),
    }
    for name, array in arrays.items():
        dtype, shape = expected[name]
        if array.dtype != dtype or array.shape != shape:
            found = f"{array.dtype} {list(array.shape)}"
            raise UserError(f"{where}: {name} is {found}, not {np.dtype(dtype)} {list(shape)}; {AGAIN}.")
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {name} holds NaN or infinity; {AGAIN}.")
    if n == 0:
        raise UserError(f"{where} has no regions; {AGAIN}.")
    if has_boxes and (arrays["boxes"].min() < 0 or arrays["boxes"].max() > 1):
        raise UserError(f"{where}: a box lies outside 0..1; {AGAIN}.")
    if width and "classes" not in arrays:
        raise UserError(f"{where} lacks classes.npy though the manifest has {width} classes; {AGAIN}.")
    if "classes" in arrays and (abs(arrays["classes"].astype(np.float64).sum(1) - 1) > SUM_TOLERANCE).any():
        raise UserError(f"{where}: a row of classes does not sum to 1; {AGAIN}.")
    captions = _captions(where, members["captions.json"], manifest)
    if NEGATIVES in members:
        rows = negatives_of(members, where, len(captions))
        if [row["id"] for row in rows] != [caption["id"] for caption in captions]:
            raise UserError(f"{where}: {NEGATIVES} is of other captions than captions.json; {AGAIN}.")
    return n, captions


def _load(where: str, name: str, data: bytes) -> np.ndarray:
    try:
        array = parse_npy(data)
    except ValueError as error:
        raise UserError(f"{where}: {name} is no array that can be read; {AGAIN}.") from error
    if array.ndim == 0:
        raise UserError(f"{where}: {name} is a single number; {AGAIN}.")
    return array


def _captions(where: str, data: bytes, manifest: dict) -> list[dict]:
    imported = manifest.get("imported_ids", False)
    captions = parse_json(data, f"{where}: captions.json", AGAIN)
    if not isinstance(captions, list):
        raise UserError(f"{where}: captions.json is no list; {AGAIN}.")
    for number, caption in enumerate(captions):
        problem = problem_of_caption(caption, manifest["vocab_size"]) or _problem(caption, imported, manifest["vocab_size"])
        if problem is not None:
            name = caption.get("id", number) if isinstance(caption, dict) else number
            raise UserError(f"{where}: caption {str(name)[:80]}: {problem}; {AGAIN}.")
    if not captions:
        raise UserError(f"{where} has no captions; {AGAIN}.")
    return captions


def _problem(caption: dict, imported: bool, vocab_size: int) -> str | None:
    """What is wrong with a caption whose values have the right types."""
    if type(caption.get("id")) is not str or "spans" not in caption:
        return "the id is no string" if "spans" in caption else "it has no spans"
    if imported != ("ids" in caption):
        return f"ids are {'missing' if imported else 'there'} against the manifest"
    if any(span.get("kind") not in SPAN_KINDS for span in caption["spans"]):
        return "a span has an unknown kind"
    if imported:
        return piece_problem(caption["ids"], caption["spans"], vocab_size)
    return span_problem(caption["text"], caption["spans"])


def _compare(where: Path | str, found: dict, said: dict) -> None:
    for name in COUNTS:
        if found[name] != said[name]:
            raise UserError(f"{where} holds {found[name]} {name}, the manifest says {said[name]}; {AGAIN}.")


def _check_classes(out: Path, manifest: dict) -> None:
    """Names and background against the number of columns."""
    names, width = manifest["class_names"], manifest["num_classes"]
    if names and len(names) != width:
        raise UserError(f"{out / 'manifest.json'} names {len(names)} classes and says num_classes {width}; {AGAIN}.")
    if manifest.get("background_class") and not width:
        raise UserError(f"{out / 'manifest.json'} has a background_class and no classes; {AGAIN}.")


def _check_edits(out: Path, manifest: dict) -> None:
    for split, kinds in manifest.get("edits", {}).items():
        for kind, said in kinds.items():
            path = out / "edits" / split / f"{kind}.json"
            if not path.is_file() or sha256_of(path) != said["sha256"]:
                raise UserError(f"{path} is missing or not what the manifest says; {AGAIN}.")
