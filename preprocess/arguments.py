"""Types and groups of arguments that the packing commands share."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from preprocess.records import PackOptions, Slice

SHORTEST = 3  # word pieces: [CLS], one of the caption, [SEP]


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
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--overwrite", action="store_true", help="replace a corpus made with other arguments")
    alone.add_argument("--slice", type=parse_slice, metavar="I/N", help="pack only every N-th shard, from the I-th (1/N to N/N, in "
                       "any order, also at the same time on several machines); --merge makes a corpus of them")  # fmt: skip
    alone.add_argument("--merge", action="store_true", help="pack nothing: check that all slices are there, write the manifest")


def parse_slice(text: str) -> Slice:
    """I/N with 1 <= I <= N."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not I/N, such as 1/8 for the first of eight slices (1/8 to 8/8)")
    return Slice(int(found[1]), int(found[2]))


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
