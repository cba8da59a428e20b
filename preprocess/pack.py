"""tagsds-pack: raw captions and region features in, shards with a manifest out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess.build import pack_corpus
from preprocess.records import PackOptions, Source
from preprocess.verify import verify_corpus
from tagsds.errors import UserError, command

OPTION_FIELDS = (
    "shard_size", "max_caption_pieces", "long_captions", "tokenizer", "vocab_size", "spans", "workers", "overwrite"
)  # fmt: skip
PATH_FIELDS = {"captions", "boxes", "class_names", "split", "tsv", "img", "folder"}  # the files' checksums stand for them
SPLIT_FIELDS = {"txt", "ims", "caps"}  # SPLIT=PATH; the order of the splits shapes the bytes
SHORTEST = 3  # word pieces: [CLS], one of the caption, [SEP]
NOT_IDENTITY = {"source", "out", *PATH_FIELDS, *SPLIT_FIELDS, *OPTION_FIELDS}


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
    butd.add_argument("--soft-classes", type=whole_number, default=0, metavar="N",
                      help="write soft labels of N columns: background, then the classes; 1601 for Visual Genome "
                      "(default 0: none)")  # fmt: skip
    butd.add_argument("--empty-images", choices=("error", "skip"), default="error", help="(default error)")

    butd.add_argument("--class-names", type=Path, help="a class a line without the background, synonyms after commas; for people")

    uniter = kinds.add_parser(
        "uniter-lmdb", help="UNITER's released LMDB: tokenised captions (with trees or without) and region features",
        epilog="tagsds-pack uniter-lmdb --txt train=txt_db/itm_coco_train.db train=txt_db/itm_coco_restval.db "
        "dev=txt_db/itm_coco_val.db --img img_db/coco_train2014 img_db/coco_val2014 --tokenizer bert-base-cased-vocab.txt "
        "--out DIR. Here --tokenizer is needed: the one the txt_db was made with.",
    )  # fmt: skip
    uniter.add_argument("--txt", type=split_path, nargs="+", action="extend", required=True, metavar="SPLIT=DIR",
                        help="a txt_db and its split; a split may have several, one after the other")  # fmt: skip
    uniter.add_argument("--img", type=Path, nargs="+", action="extend", required=True, metavar="DIR",
                        help="img_db folder, or the variant inside it; several are searched in this order")  # fmt: skip
    uniter.add_argument("--variant", help="variant where an img_db holds several: feat_th0.2_max100_min10, all, ...")
    uniter.add_argument("--without-soft-labels", action="store_true", help="leave classes.npy out (saves 2 bytes a class a region)")

    scan = kinds.add_parser("scan-npy", help="SCAN's precomp arrays: captions and region features without boxes")
    scan.add_argument("--folder", type=Path, help="folder of {train,dev,test}_ims.npy and _caps.txt, those that are there")
    scan.add_argument("--ims", type=split_path, nargs="+", action="extend", default=[], metavar="SPLIT=FILE",
                      help="features of a split, if not from --folder")  # fmt: skip
    scan.add_argument("--caps", type=split_path, nargs="+", action="extend", default=[], metavar="SPLIT=FILE",
                      help="captions of a split, a line each")  # fmt: skip
    scan.add_argument("--captions-per-image", type=positive_number, default=5, help="(default 5)")

    for source in (coco, butd):
        add_split(source)
    for source in (world, coco):
        source.add_argument("--seed", type=int, default=0, help="(default 0)")
    for source in (world, coco, butd, uniter, scan):
        add_common(source)
        source.add_argument(
            "--workers", type=positive_number, default=PackOptions().workers, help="processes (default %(default)s)"
        )

    verify = kinds.add_parser("verify", help="check a packed folder: checksums, counts, shapes")
    verify.add_argument("out", type=Path, metavar="DIR")
    args = parser.parse_args(arguments)
    if args.source == "uniter-lmdb" and args.tokenizer is None:
        uniter.error("--tokenizer is needed: the folder or vocab.txt that the txt_db was made with")
    return args


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", type=Path, required=True, help="JSON of image ids a split, or Karpathy's JSON")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every command that writes shards, but for the number of processes."""
    defaults = PackOptions()
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the shards")
    parser.add_argument("--tokenizer", help="name, folder or vocab.txt (default: a WordPiece one is trained)")
    parser.add_argument("--vocab-size", type=positive_number, default=defaults.vocab_size,
                        help="most pieces of a trained vocabulary (default %(default)s)")  # fmt: skip
    parser.add_argument("--spans", choices=("rules", "spacy", "auto"), default=defaults.spans,
                        help="who finds spans (default auto: spaCy if installed)")  # fmt: skip
    parser.add_argument("--max-caption-pieces", type=split_limit, nargs="+", action=Limits, default=defaults.max_caption_pieces,
                        metavar="[SPLIT=]N", help="limit of a caption with [CLS] and [SEP], in the splits named; N alone is "
                        "train=N. Captions of other splits stay whole (default train=60)")  # fmt: skip
    parser.add_argument("--long-captions", choices=("error", "truncate", "drop"), default=defaults.long_captions,
                        help="what to do with captions over that limit (default %(default)s)")  # fmt: skip
    parser.add_argument(
        "--shard-size", type=positive_number, default=defaults.shard_size, help="images (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a corpus made with other arguments")


def split_path(text: str) -> tuple[str, Path]:
    """SPLIT=PATH."""
    split, separator, path = text.partition("=")
    if not separator or not path or not re.fullmatch(r"[A-Za-z0-9_]+", split):
        raise argparse.ArgumentTypeError(f"'{text}' is not SPLIT=PATH, such as train={text or 'DIR'}")
    return split, Path(path)


def split_limit(text: str) -> tuple[str, int]:
    """N or SPLIT=N."""
    split, number = (text.partition("=")[::2]) if "=" in text else ("train", text)
    if not re.fullmatch(r"[A-Za-z0-9_]+", split) or not number.isascii() or not number.isdigit() or int(number) < SHORTEST:
        raise argparse.ArgumentTypeError(f"'{text}' is not N or SPLIT=N, such as 60 or train=60, with N at least {SHORTEST}")
    return split, int(number)


class Limits(argparse.Action):
    """Limits by split; train keeps the default where it is not named."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Values are pairs of `split_limit`."""
        if len(dict(values)) != len(values):
            parser.error(f"{option} names a split twice: {', '.join(split for split, _ in values)}")
        setattr(namespace, self.dest, getattr(namespace, self.dest) | dict(values))


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
    if args.source == "uniter-lmdb":
        from preprocess.sources.uniter_lmdb import UniterLmdbSource

        return UniterLmdbSource.read(args.txt, args.img, args.variant, args.tokenizer, not args.without_soft_labels)
    if args.source == "scan-npy":
        from preprocess.sources.scan_npy import ScanNpySource

        return ScanNpySource.read(args.folder, args.ims, args.caps, args.captions_per_image)
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
    arguments_of_source = {k: v for k, v in vars(args).items() if k not in NOT_IDENTITY}
    named = {k: [split for split, _ in v] for k, v in vars(args).items() if k in SPLIT_FIELDS}
    pack_and_tell(
        lambda: make_source(args),
        lambda source: {"source": args.source, **arguments_of_source, **named, **source.facts},
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
    if packed:
        print(f"packed into {out}; check it with: tagsds-pack --verify {out}")
    else:
        print(f"{out} is already complete with these arguments; nothing to do.")


main = command(run)

if __name__ == "__main__":
    main()
