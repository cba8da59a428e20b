"""What the file of a source tells tagsds-pack."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from preprocess.records import Source


@dataclass(frozen=True)
class SourceCommand:
    """A source as a subcommand.

    help, epilog    for `tagsds-pack --help` and `tagsds-pack NAME --help`
    add_arguments   declares the source's own arguments; those of every source (--out, --tokenizer, ...) follow by themselves
    make            the reader, from the parsed arguments
    paths           arguments that name files: the manifest has the files' checksums in their place
    split_paths     arguments of SPLIT=PATH, parsed by `arguments.split_path`: the manifest has the splits in their order
    required        arguments of every source that this one needs, and what is to be given
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    make: Callable[[argparse.Namespace], Source]
    paths: frozenset[str] = frozenset()
    split_paths: frozenset[str] = frozenset()
    required: Mapping[str, str] = field(default_factory=dict)
    epilog: str | None = None
