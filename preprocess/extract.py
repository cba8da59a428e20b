"""tagsds-extract: a folder of pictures and a vision model in, shards with a manifest out, as tagsds-pack writes them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from preprocess.arguments import add_common, add_split, positive_number, whole_number
from preprocess.extractors.pictures import find_pictures
from preprocess.extractors.source import ExtractSource
from preprocess.pack import OPTION_FIELDS, pack_and_tell
from preprocess.sources.karpathy import read_index
from tagsds.errors import UserError, command
from tagsds.files import check_exist
from tagsds.vision.checkpoint import find_vision_checkpoint
from tagsds.vision.model import DETECTOR_FIELDS, Extraction, VisionModel


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tagsds-extract", description=__doc__, epilog="Check the shards with tagsds-pack --verify DIR."
    )
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="folder of the pictures, with its subfolders")
    parser.add_argument("--model", required=True, help="folder (or name) of a Hugging Face vision model with its image processor")
    parser.add_argument("--captions", type=Path, nargs="+", default=[], help="captions JSON; not needed with a Karpathy split")
    add_split(parser)
    parser.add_argument("--kind", choices=("auto", "grid", "detector"), default="auto",
                        help="regions are the patches, or what is detected (default auto: as the model is)")  # fmt: skip
    parser.add_argument("--pool", type=positive_number, metavar="N", help="grid: average the patches to at most N x N cells")
    parser.add_argument("--threshold", type=share, default=0.2, help="detector: regions above this confidence (default 0.2)")
    parser.add_argument("--min-regions", type=positive_number, default=10, help="detector: but at least so many (default 10)")
    parser.add_argument("--max-regions", type=positive_number, default=100, help="detector: and at most (default 100)")
    parser.add_argument("--broken-pictures", choices=("error", "skip"), default="error", help="(default error)")
    parser.add_argument("--thumbnail", type=whole_number, default=0, metavar="PIXELS",
                        help="keep the picture, for people, at this size of its longer side (default 0: none)")  # fmt: skip
    parser.add_argument("--batch", type=positive_number, default=32, help="most pictures of a forward (default 32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto: a GPU if there is one)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast (default fp32)")
    parser.add_argument("--threads", type=positive_number, default=2, help="that decode pictures (default 2)")
    add_common(parser)
    args = parser.parse_args(arguments)
    if args.min_regions > args.max_regions:
        parser.error(f"--min-regions {args.min_regions} is more than --max-regions {args.max_regions}")
    return args


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def choose_device(name: str) -> torch.device:
    """The device of --device; UserError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not built in, or `meta`
        raise UserError(f"--device {name} is not there; use --device auto, or cpu.") from error
    return device


def make_source(args: argparse.Namespace) -> ExtractSource:
    """Captions, pictures, then the model: what is missing is said before anything slow."""
    files = [*args.captions, args.split]
    check_exist(files)
    index = read_index(args.captions, args.split)
    if not index.splits:
        raise UserError(f"{args.split} names no images; list some for a split.")
    pictures, listed = find_pictures(args.pictures, index, args.split)
    checkpoint = find_vision_checkpoint(args.model)
    kind = checkpoint.kind() if args.kind == "auto" else args.kind
    if kind == "detector" and args.pool is not None:
        raise UserError(f"--pool {args.pool} is for kind grid, and {args.model} is a detector; leave it out, or use --kind grid.")
    device = choose_device(args.device)
    if device.type == "cuda" and args.dtype == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # convolutions would round to 10 bits
    given = {name: getattr(args, name) for name in ("pool", *DETECTOR_FIELDS)}
    extraction = Extraction(kind, **given, bf16=args.dtype == "bf16")
    about = {**extraction.facts, "device": device.type, "model": checkpoint.facts(), "pictures": listed}
    vision = VisionModel(checkpoint, extraction, device)
    return ExtractSource(
        index, args.pictures, pictures, files, vision, args.batch, args.threads, args.broken_pictures, args.thumbnail, kind,
        about=about, model=args.model,
    )  # fmt: skip


def run(arguments: list[str] | None = None) -> None:
    """Parse and do."""
    args = parse(sys.argv[1:] if arguments is None else arguments)
    shaping = {name: getattr(args, name) for name in ("dtype", "batch", "broken_pictures", "thumbnail")}
    options = {name: getattr(args, name) for name in OPTION_FIELDS if name != "workers"} | {"workers": 1}  # one holds the model
    pack_and_tell(lambda: make_source(args), lambda source: {**shaping, **source.facts}, options, args.out)


main = command(run)

if __name__ == "__main__":
    main()
