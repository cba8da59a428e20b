"""Packing one corpus in several processes that share nothing but the folder: `--slice I/N` packs a share of the shards, `--merge`
checks that all are there and writes the manifest.

Shard j (from 0, in the manifest's order) belongs to slice j % N + 1. A slice writes its shards, their notes in the journal, and a
tokenizer of its own in the journal (training is deterministic, so all are the same); no two slices write the same file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocess.records import Slice
from preprocess.resume import JOURNAL
from tagsds.errors import UserError

FOLDER = re.compile(r"^tokenizer-(\d+)-of-(\d+)$")
NAMED = 3  # missing shards that an error names


def tokenizer_of(part: Slice, out: Path) -> Path:
    """The folder of a slice's tokenizer; its name also tells `missing` how many slices there are."""
    return out / JOURNAL / f"tokenizer-{part.number}-of-{part.count}"


def halves(files: Sequence[str], out: Path) -> list[Path]:
    """What a killed run of a slice (of these shards) left half-written; other slices may be writing theirs."""
    return [left for file in files for folder in (out, out / JOURNAL) for left in folder.glob(f".{file}.*.tmp")]


def check_begun(out: Path) -> None:
    """UserError where --merge is asked of a folder in which no slice was packed."""
    if not (out / JOURNAL / "arguments.json").exists() and not (out / "manifest.json").exists():
        raise UserError(f"{out} holds no slices to merge; pack them first with --slice 1/N to --slice N/N.")


def missing(files: Sequence[str], done: Mapping[str, object], out: Path) -> str:
    """One sentence on the shards (all of the corpus in order: `files`) that are not `done`; '' where none is missing."""
    absent = [file for file in files if file not in done]
    if not absent:
        return ""
    more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
    counts = {int(found[2]) for path in (out / JOURNAL).iterdir() if (found := FOLDER.match(path.name))}
    whose = ""
    if len(counts) == 1:
        count = counts.pop()
        numbers = sorted({files.index(file) % count + 1 for file in absent})
        whose = f" of slice{'s' if len(numbers) > 1 else ''} {', '.join(f'{number}/{count}' for number in numbers)}"
    return (
        f"{out} lacks {len(absent)} of {len(files)} shards{whose} ({', '.join(absent[:NAMED])}{more}); run "
        f"{'them' if whose.startswith(' of slices') else 'it' if whose else 'their slices'} again, or the command without --merge, "
        "which packs what is missing."
    )
