"""tagsds-pack: raw captions and region features in, shards with a manifest out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from preprocess.arguments import add_common, positive_number
from preprocess.build import pack_corpus
from preprocess.records import PackOptions, Source
from preprocess.sources import SOURCES
from preprocess.verify import verify_corpus
from tagsds.errors import UserError, command

OPTION_FIELDS = (
    "shard_size", "max_caption_pieces", "long_captions", "tokenizer", "vocab_size", "spans", "workers",
    "overwrite", "slice", "merge",
)  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `--verify DIR` is the same as `verify DIR`."""
    if "--verify" in arguments:
        arguments = ["verify", *(a for a in arguments if a != "--verify")]
    parser = argparse.ArgumentParser(
        prog="tagsds-pack", description=__doc__, epilog="tagsds-pack --verify DIR is the same as tagsds-pack verify DIR"
    )
    commands = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    parsers = {name: commands.add_parser(name, help=kind.help, epilog=kind.epilog) for name, kind in SOURCES.items()}
    for name, kind in SOURCES.items():
        kind.add_arguments(parsers[name])
        add_common(parsers[name])
        parsers[name].add_argument(
            "--workers", type=positive_number, default=PackOptions().workers, help="processes (default %(default)s)"
        )
        parsers[name].add_argument("--check", action="store_true", help="write nothing: only see that the inputs are there")
    verify = commands.add_parser("verify", help="check a packed folder: checksums, counts, shapes")
    verify.add_argument("out", type=Path, metavar="DIR")
    args = parser.parse_args(arguments)
    if args.source in SOURCES:
        for name in SOURCES[args.source].required:
            if getattr(args, name) is None:
                parsers[args.source].error(f"--{name} is needed: {SOURCES[args.source].required[name]}")
    return args


def identity(args: argparse.Namespace) -> dict:
    """The arguments that make a corpus what it is, for the manifest. Of files the checksums stand for the paths; of SPLIT=PATH
    the order of the splits remains, since it shapes the bytes."""
    kind = SOURCES[args.source]
    elsewhere = {"source", "out", "check", *kind.paths, *kind.split_paths, *OPTION_FIELDS}
    own = {name: value for name, value in vars(args).items() if name not in elsewhere}
    return own | {name: [split for split, _ in getattr(args, name)] for name in vars(args) if name in kind.split_paths}


def check_inputs(args: argparse.Namespace) -> int:
    """How many files and folders the arguments name; UserError for one that is not there."""
    kind = SOURCES[args.source]
    named = [value for name in kind.paths for value in _listed(getattr(args, name))]
    named += [path for name in kind.split_paths for _, path in _listed(getattr(args, name))]
    for path in named:
        if not Path(path).exists():
            raise UserError(f"{path} does not exist; check the path.")
    return len(named)


def _listed(value: object) -> list:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def run(arguments: list[str] | None = None) -> None:
    """Parse and do."""
    args = parse(sys.argv[1:] if arguments is None else arguments)
    if args.source == "verify":
        print(verify_corpus(args.out))
        return
    if args.check:
        print(f"{args.source} into {args.out}: {check_inputs(args)} inputs are there")
        return
    pack_and_tell(
        lambda: SOURCES[args.source].make(args),
        lambda source: {"source": args.source, **identity(args), **source.facts},
        {name: getattr(args, name) for name in OPTION_FIELDS},
        args.out,
    )


def pack_and_tell(
    make: Callable[[], Source], arguments: Callable[[Source], dict], options: dict, out: Path
) -> None:
    """Pack what `make` gives, and say what was done. `arguments`, of the source, become part of the manifest."""
    try:
        source = make()
        packed = pack_corpus(source, PackOptions(**options, arguments=arguments(source)), out)
    except KeyboardInterrupt:
        raise UserError("interrupted; the same command continues where this one stopped.") from None
    part = options["slice"]
    if packed and part is not None:
        print(f"slice {part.number}/{part.count} of {out} is packed; after all of them: the same command with --merge")
    elif packed:
        print(f"packed into {out}; check it with: tagsds-pack --verify {out}")
    else:
        print(f"{out} is already complete with these arguments; nothing to do.")


main = command(run)

if __name__ == "__main__":
    main()
