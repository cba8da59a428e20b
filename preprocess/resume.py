"""What makes a killed run continue: its identity, the journal of finished shards, and the state of the folder."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from preprocess.records import PackOptions, Source
from preprocess.shards import ShardEntry
from tagsds.errors import UserError
from tagsds.files import sha256_of, write_json

JOURNAL = ".journal"
WHOLE_FILE_BYTES = 256 << 20  # input files up to this size are hashed whole, larger ones at both ends
END_BYTES = 1 << 20
SHARD_NAME = re.compile(r"^[A-Za-z0-9_]+-\d{6}\.tar$")


def fingerprint(path: Path) -> dict:
    """Name, size and checksum of an input; for a folder, of every file in it. No path, so that a corpus can move."""
    if path.is_dir():
        return {"name": path.name, "files": [fingerprint(inner) for inner in sorted(path.iterdir()) if inner.is_file()]}
    size = path.stat().st_size
    if size <= WHOLE_FILE_BYTES:
        return {"name": path.name, "bytes": size, "sha256": sha256_of(path)}
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        digest.update(stream.read(END_BYTES))
        stream.seek(size - END_BYTES)
        digest.update(stream.read(END_BYTES))
    return {"name": path.name, "bytes": size, "sha256_of_ends": digest.hexdigest()}


def identify(source: Source, options: PackOptions) -> dict:
    """Everything that shapes the bytes of the corpus; two runs with the same identity write the same files."""
    tokenizer: object = options.tokenizer
    if options.tokenizer is not None and Path(options.tokenizer).exists():
        tokenizer = fingerprint(Path(options.tokenizer))
    return {
        **options.arguments,
        "background_class": source.background_class,
        "shard_size": options.shard_size,
        "max_caption_pieces": options.max_caption_pieces,
        "long_captions": options.long_captions,
        "tokenizer": tokenizer,
        "vocab_size": options.vocab_size,
        "spans": options.spans,
        "inputs": [fingerprint(path) for path in source.files],
    }


def prepare_folder(out: Path, identity: dict, overwrite: bool) -> bool:
    """Make `out` ready to be written or continued; False if it already holds this corpus in full."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to --out.")
    if overwrite:
        clear(out)
    manifest, journal = out / "manifest.json", out / JOURNAL / "arguments.json"
    # looked for before the journal is: another slice's first shard comes after its journal
    strange = out.is_dir() and any(p.name != JOURNAL for p in out.iterdir())
    if manifest.exists():
        arguments = _read(manifest).get("made_by", {}).get("arguments")
        if arguments != identity:
            raise UserError(
                f"{out} holds a corpus made from other arguments or inputs ({_difference(arguments, identity)}); "
                "use --overwrite or another --out."
            )
        shutil.rmtree(out / JOURNAL, ignore_errors=True)  # left by a run killed between the manifest and its last line
        return False
    if journal.exists():
        arguments = _read(journal)
        if arguments != identity:
            raise UserError(
                f"{out} holds an unfinished run with other arguments or inputs ({_difference(arguments, identity)}); "
                "repeat it with those, use --overwrite, or another --out."
            )
    elif strange:
        raise UserError(f"{out} is not empty and holds no corpus of tagsds-pack; give an empty folder to --out.")
    write_json(journal, identity)
    return True


def remove_halves(files: Iterable[Path]) -> None:
    """Remove what a killed run left half-written."""
    for left in files:
        left.unlink(missing_ok=True)


def clear(out: Path) -> None:
    """Remove a corpus, the manifest first, and the cache of its tables; nothing else that tagsds-pack did not write is touched."""
    if not (out / "manifest.json").exists() and not (out / JOURNAL / "arguments.json").exists():
        return
    write_json(out / JOURNAL / "arguments.json", {"overwriting": True})  # keeps the folder recognisable if killed here
    (out / "manifest.json").unlink(missing_ok=True)
    for path in out.iterdir():
        if SHARD_NAME.match(path.name) or (path.name.startswith(".") and path.name.endswith(".tmp")):
            path.unlink()
    for folder in ("tokenizer", "edits", "cache", JOURNAL):
        shutil.rmtree(out / folder, ignore_errors=True)


def note(entry: ShardEntry, tokenizer: Path, out: Path) -> None:
    """Enter a finished shard in the journal, with the checksum of the tokenizer by which its captions were measured and cut."""
    write_json(out / JOURNAL / f"{entry.file}.json", {**asdict(entry), "tokenizer": sha256_of(tokenizer / "tokenizer.json")})


def finished(files: list[str], tokenizer: Path, out: Path) -> dict[str, ShardEntry]:
    """Shards that the journal lists as made with this tokenizer and that still have the bytes it says."""
    made_with = sha256_of(tokenizer / "tokenizer.json")
    found = {}
    for file in files:
        path, noted = out / file, out / JOURNAL / f"{file}.json"
        if noted.exists() and path.exists():
            told = _read(noted)
            same = told.pop("tokenizer", "") == made_with
            entry = ShardEntry(**told)
            if same and path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256:
                found[file] = entry
    return found


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON; delete the folder and pack again.") from error


def _difference(old: dict | None, new: dict) -> str:
    """Names of the arguments that differ."""
    old = old or {}
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(names) or "none"
