"""tagsds-pack: raw captions and region features in, shards with a manifest out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from preprocess.build import pack_corpus
from preprocess.records import PackOptions, Source
from preprocess.verify import verify_corpus
from tagsds.errors import UserError, command

OPTION_FIELDS = (
    "shard_size", "max_caption_pieces", "long_captions", "tokenizer", "vocab_size", "spans", "workers", "overwrite"
)  # fmt: skip
NOT_IDENTITY = {"source", "out", "captions", "boxes", "class_names", "split", "tsv", *OPTION_FIELDS}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `--verify DIR` is the same as `verify DIR`."""
    if "--verify" in arguments:
        arguments = ["verify", *(a for a in arguments if a != "--verify")]
    parser = argparse.ArgumentParser(
        prog="tagsds-pack", description=__doc__, epilog="tagsds-pack --verify DIR is the same as tagsds-pack verify DIR"
    )
    kinds = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    world = kinds.add_parser("world", help="the embedded corpus: drawn scenes with captions and false edits")
    world.add_argument("--train", type=whole_number, default=2000, help="images (default 2000)")
    world.add_argument("--dev", type=whole_number, default=200, help="images (default 200)")
    world.add_argument("--test", type=whole_number, default=400, help="images (default 400)")

    coco = kinds.add_parser("coco", help="COCO captions with annotated boxes; features made from the class of a box")
    coco.add_argument("--captions", type=Path, nargs="+", help="captions JSON as published, one file or several")
    coco.add_argument("--boxes", type=Path, nargs="+", required=True, help="instances JSON, or text lines of boxes")
    coco.add_argument("--class-names", type=Path, help="a class a line; needed with boxes as text")
    coco.add_argument("--feature-dim", type=positive_number, default=64, help="width of a feature (default 64)")
    coco.add_argument(
        "--noise", type=float, default=0.3, help="expected norm of the noise on a unit vector (default 0.3)"
    )
    coco.add_argument("--empty-images", choices=("error", "whole", "skip"), default="whole", help="(default whole)")

    butd = kinds.add_parser("butd-tsv", help="bottom-up-attention features as TSV")
    butd.add_argument("--tsv", type=Path, nargs="+", required=True, help="TSV file, or several")
    butd.add_argument("--captions", type=Path, nargs="+", help="captions JSON; not needed with a Karpathy split")
    butd.add_argument("--select", choices=("confidence", "fixed36"), default="confidence",
                      help="above 0.2, 10 to 100 of them; or the 36 best (default confidence)")  # fmt: skip
    butd.add_argument("--soft-classes", type=int, default=0, metavar="N",
                      help="write soft labels of N classes (default 0: none)")  # fmt: skip
    butd.add_argument("--empty-images", choices=("error", "skip"), default="error", help="(default error)")

    butd.add_argument("--class-names", type=Path, help="a class a line, synonyms after commas; for people")
    for source in (coco, butd):
        source.add_argument("--split", type=Path, required=True, help="JSON of image ids a split, or Karpathy's JSON")
    for source in (world, coco):
        source.add_argument("--seed", type=int, default=0, help="(default 0)")
    for source in (world, coco, butd):
        _add_common(source)

    verify = kinds.add_parser("verify", help="check a packed folder: checksums, counts, shapes")
    verify.add_argument("out", type=Path, metavar="DIR")
    return parser.parse_args(arguments)


def _add_common(parser: argparse.ArgumentParser) -> None:
    defaults = PackOptions()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--tokenizer", help="name, folder or vocab.txt (default: a WordPiece one is trained)")
    parser.add_argument("--vocab-size", type=positive_number, default=defaults.vocab_size,
                        help="most pieces of a trained vocabulary (default %(default)s)")  # fmt: skip
    parser.add_argument("--spans", choices=("rules", "spacy", "auto"), default=defaults.spans,
                        help="who finds spans (default auto: spaCy if installed)")  # fmt: skip
    parser.add_argument("--max-caption-pieces", type=positive_number, default=defaults.max_caption_pieces,
                        help="limit of a caption with [CLS] and [SEP] (default %(default)s)")  # fmt: skip
    parser.add_argument("--long-captions", choices=("error", "truncate", "drop"), default=defaults.long_captions,
                        help="(default %(default)s)")  # fmt: skip
    parser.add_argument(
        "--shard-size", type=positive_number, default=defaults.shard_size, help="images (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=positive_number, default=defaults.workers, help="processes (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus made with other arguments")


def whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def positive_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def make_source(args: argparse.Namespace) -> Source:
    """The reader of the format that was named."""
    if args.source == "world":
        from preprocess.sources.world import WorldSource

        images = {split: getattr(args, split) for split in ("train", "dev", "test")}
        return WorldSource({split: count for split, count in images.items() if count}, args.seed)
    if args.source == "coco":
        from preprocess.sources.coco import CocoSource

        return CocoSource.read(
            args.captions or [], args.boxes, args.split, args.class_names,
            args.feature_dim, args.noise, args.seed, args.empty_images,
        )  # fmt: skip
    from preprocess.sources.butd_tsv import ButdTsvSource

    return ButdTsvSource.read(
        args.tsv, args.captions or [], args.split, args.class_names, args.select, args.soft_classes, args.empty_images
    )


def run(arguments: list[str] | None = None) -> None:
    """Parse and do."""
    args = parse(sys.argv[1:] if arguments is None else arguments)
    if args.source == "verify":
        print(verify_corpus(args.out))
        return
    options = PackOptions(
        **{name: getattr(args, name) for name in OPTION_FIELDS},
        arguments={"source": args.source, **{k: v for k, v in vars(args).items() if k not in NOT_IDENTITY}},
    )
    try:
        packed = pack_corpus(make_source(args), options, args.out)
    except KeyboardInterrupt:
        raise UserError("interrupted; the same command continues where this one stopped.") from None
    if packed:
        print(f"packed into {args.out}; check it with: tagsds-pack --verify {args.out}")
    else:
        print(f"{args.out} is already complete with these arguments; nothing to do.")


main = command(run)

if __name__ == "__main__":
    main()
