"""`manifest.json` of a packed corpus: what the packer writes, the verifier checks and everything else reads."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tagsds.errors import UserError, nearest
from tagsds.files import check_file, sha256_of
from tagsds.formats.shape import Count, Of, Table, read_object

FORMAT, VERSION = "tagsds-shards", 1
UNITER_CLASSES = 1601  # Visual Genome's 1,600 objects after the background
WIDEST = 1 << 20  # of a feature, of the soft labels, of a vocabulary
COPY_AGAIN = "copy it again, or pack the corpus again"

SHARD = {"file": Of(str), "bytes": Count(), "sha256": Of(str), **dict.fromkeys(("samples", "captions", "regions"), Count())}
SPLIT = {"shards": [SHARD], "max_caption_pieces?": Count(), **dict.fromkeys(("images", "captions", "regions"), Count())}
SHAPE = {
    "format": Of(str), "version": Count(), "feature_dim": Count(1, WIDEST), "num_classes": Count(0, WIDEST),
    "class_names": [Of(str)], "vocab_size": Count(1, WIDEST), "max_regions": Count(), "max_caption_pieces": Count(),
    "splits": Table(SPLIT), "tokenizer?": Of(str), "boxes?": Of(bool), "background_class?": Of(bool), "imported_ids?": Of(bool),
    "made_by?": Of(dict), "tokenizer_files?": Table(Of(str)), "edits?": Table(Table({"sha256": Of(str), "pairs?": Count()})),
    "negatives?": Table(Of(dict)),
}  # fmt: skip


@dataclass
class Manifest:
    """`manifest.json` of a packed corpus; the contract is in preprocess/README.md."""

    folder: Path
    feature_dim: int
    num_classes: int
    class_names: list[str]
    vocab_size: int
    max_regions: int
    max_caption_pieces: int
    splits: dict[str, Any]
    boxes: bool = True  # False: no sample has boxes.npy
    background_class: bool = False  # True: column 0 of the soft labels is the background
    made_by: dict[str, Any] = field(default_factory=dict)  # source, arguments, version of the packer
    tokenizer_files: dict[str, str] = field(default_factory=dict)  # sha256 of the files in tokenizer/; {}: an older corpus
    edits: dict[str, Any] = field(default_factory=dict)  # {split: {kind: {pairs, sha256}}}
    negatives: dict[str, Any] = field(default_factory=dict)  # {split whose samples hold negatives.json: how they were written}

    def shards(self, split: str) -> list[dict[str, Any]]:
        """The split's shards in order, each {file, samples, captions, regions, bytes, sha256}."""
        if split not in self.splits:
            raise UserError(f"{self.folder / 'manifest.json'} has no split '{split}': {nearest(split, self.splits)}")
        return self.splits[split]["shards"]

    def caption_pieces(self, split: str) -> int:
        """Most word pieces of a caption of the split, with [CLS] and [SEP]; of the corpus where an older manifest says no more."""
        return self.splits.get(split, {}).get("max_caption_pieces", self.max_caption_pieces)


    def check_tokenizer(self) -> None:
        """UserError where a file of tokenizer/ is missing, changed, or one that the packer did not write."""
        folder = self.folder / "tokenizer"
        for name, sha256 in self.tokenizer_files.items():
            check_file(folder / name, "manifest.json", COPY_AGAIN, sha256)
        strange = [path for path in sorted(folder.glob("[!.]*")) if path.is_file() and path.name not in self.tokenizer_files]
        if self.tokenizer_files and strange:
            raise UserError(f"{strange[0]} is not among the tokenizer's files that manifest.json names; remove it.")

    def check_edits(self, path: Path) -> None:
        """UserError where `path` is a file of the corpus's own edits/ and has changed."""
        place = path.resolve()
        kinds = self.edits.get(place.parent.name, {})
        if place.parent.parent == (self.folder / "edits").resolve() and place.stem in kinds:
            check_file(path, "manifest.json", COPY_AGAIN, kinds[place.stem]["sha256"])


def files_of_tokenizer(folder: Path) -> dict[str, str]:
    """`tokenizer_files` of a manifest: {name: sha256} of the files in the tokenizer's folder, by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("[!.]*")) if path.is_file()}


def manifest_object(folder: Path) -> dict[str, Any]:
    """The JSON of a corpus's manifest, once every value that is read anywhere has its type and the counts can be true. UserError
    otherwise."""
    path = folder / "manifest.json"
    again = "pack the corpus again, or copy the file again"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make the shards with `tagsds-pack SOURCE ... --out {folder}`.")
    raw = read_object(path, SHAPE, "a manifest of tagsds-pack", again)
    if (raw["format"], raw["version"]) != (FORMAT, VERSION):
        raise UserError(f"{path} is no manifest of {FORMAT} version {VERSION}; {again}.")
    for split, part in raw["splits"].items():
        for name, of_shard in (("images", "samples"), ("captions", "captions"), ("regions", "regions")):
            if part[name] != (total := sum(shard[of_shard] for shard in part["shards"])):
                raise UserError(f"{path} counts {part[name]} {name} in split {split} and {total} in its shards; {again}.")
        for shard in part["shards"]:
            smallest = 2 * shard["regions"] * raw["feature_dim"] + 1024 * shard["samples"]  # float16; a tar block a member
            if shard["bytes"] < smallest:
                name = shard["file"][:80]
                raise UserError(f"{path} says {shard['regions']} regions in the {shard['bytes']} bytes of {name}; {again}.")
    return raw


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of a packed corpus. UserError where there is none, or it is damaged."""
    folder = Path(folder)
    raw = manifest_object(folder)
    names = {field.name for field in fields(Manifest)} - {"folder"}
    manifest = Manifest(folder, **{name: value for name, value in raw.items() if name in names})
    if "background_class" not in raw:  # packed before manifests said it
        manifest.background_class = manifest.num_classes == UNITER_CLASSES
    return manifest
