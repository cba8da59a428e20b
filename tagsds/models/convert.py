"""tagsds-convert: published checkpoints in, Hugging Face folders out, and back.

    tagsds-convert uniter-base.pt --out pretrained/uniter-base --tokenizer bert-base-cased-vocab.txt
    tagsds-convert bert-base-cased/ --out pretrained/bert-base --region-dim 2048
    tagsds-convert model_best.pth.tar --out pretrained/vsrn --vocabulary coco_precomp_vocab.json
    tagsds-convert runs/tagsdc --out tagsdc.pt

The folder starts a run (`init=FOLDER`), is evaluated (`--checkpoint FOLDER`), and its tokenizer packs a corpus
(`tagsds-pack ... --tokenizer FOLDER`). A folder of this program becomes a file in the layout of the code it came from.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from tagsds.data.wordpiece import wordpiece_tokenizer
from tagsds.errors import UserError, command, first_line
from tagsds.files import read_json_object, sha256_of, write_checksums, write_json
from tagsds.formats.shape import Any as AnyValue
from tagsds.formats.shape import Count, Of, Table, read_object
from tagsds.models.card import Card
from tagsds.models.load import find_checkpoint, load_model
from tagsds.models.published.files import read_published, write_published
from tagsds.models.published.matchers import from_matcher, kind_of, layouts, name_of, to_matcher
from tagsds.models.published.uniter import MOST_PADDING, TEXT_HALF, Converted, from_uniter, to_uniter
from tagsds.models.published.words import read_words, word_tokenizer

RECORD = "published.json"  # in the folder: what the way back needs
RECORD_SHAPE = {
    "layout": Of(str), "vocabulary_padding?": Count(0, MOST_PADDING), "options?": Table(AnyValue),
    "keys?": (Table(Of(str)), Table([Of(str)])),
}  # fmt: skip
OPTIONS = {  # what each kind of conversion takes, beside the source, --out and --layout
    "encoder": ("tokenizer", "config", "region_dim", "region_classes", "ignore"),
    "matcher": ("vocabulary", "option"),
    "way back": ("dtype",),
}
WHOSE = {"encoder": "an encoder's file", "matcher": "a matcher's file", "way back": "a folder of this program"}
WRITERS: dict[str, Callable[..., dict[str, Any]]] = {"uniter": to_uniter}  # of the way back; all other layouts are matchers
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tagsds-convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a published file or BERT folder; or a run or folder of this program")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; the file to write on the way back")
    parser.add_argument("--layout", choices=("auto", "uniter", "bert", *layouts()), default="auto", help="(default auto)")
    parser.add_argument("--tokenizer", help="name, folder or vocab.txt of the word pieces (UNITER, BERT)")
    parser.add_argument("--vocabulary", type=Path, help="word2idx as JSON, or the pickled Vocabulary (VSRN, SCAN, BFAN)")
    parser.add_argument("--config", type=Path, help="BERT-type config JSON; needed where a head is not 64 wide")
    parser.add_argument("--region-dim", type=int, help=f"width of region features, for BERT (default {TEXT_HALF['region_dim']})")
    parser.add_argument("--region-classes", type=int, help=f"their classes, for BERT (default {TEXT_HALF['num_region_classes']})")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="option of a matcher's training")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="KEY", help="beginnings of keys to leave out")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="way back: precision (default: of the file it came from, or fp32)")
    return parser.parse_args(arguments)


def run(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    args.out = args.out.resolve()
    ours = is_ours(args.source)
    if args.out.exists() and (ours or not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"{args.out} exists and is not overwritten; remove it, or give another --out.")
    try:
        (export if ours else convert)(args)
    except OSError as error:
        where = error.filename or args.out
        raise UserError(f"{where}: {error.strerror or error}; check the path, or give another --out.") from error


def is_ours(source: Path) -> bool:
    """A run of this program, or a Hugging Face folder whose config is ours."""
    config = source / "config.json"
    if source.is_dir() and not config.is_file():
        return (source / "export").is_dir() or not any((source / n).is_file() for n in ("model.safetensors", "pytorch_model.bin"))
    return config.is_file() and str(read_json_object(config).get("model_type", "")).startswith("tagsds_")


def convert(args: argparse.Namespace) -> None:
    """A published checkpoint -> a Hugging Face folder with its tokenizer, a model card, and a record for the way back."""
    published = read_published(args.source)
    matcher = published.is_matcher or args.layout in layouts()
    refuse_others(args, "matcher" if matcher else "encoder", published.path)
    if published.is_matcher and args.layout in ("uniter", "bert"):
        raise UserError(f"{published.path} holds the two halves of a matcher, not {args.layout}'s layout; leave --layout out.")
    if matcher:
        tokenizer: Any = word_tokenizer(read_words(args.vocabulary)) if args.vocabulary else None
        if not published.is_matcher:
            raise UserError(f"{published.path} does not hold the two halves of a matcher; give the file that its training saved.")
        kind, options = kind_of(published, args.layout), dict(map(option_of, args.option))
        done = from_matcher(published, kind, options)
        rows = done.model.config.vocab_size
        if tokenizer is not None and len(tokenizer) != rows:
            raise UserError(
                f"{args.vocabulary} has {len(tokenizer)} words and {published.path} {rows}; "
                "give the vocabulary the checkpoint was trained with."
            )
    else:
        tokenizer = wordpiece_tokenizer(args.tokenizer) if args.tokenizer else tokenizer_beside(args.source)
        pieces = len(tokenizer) if tokenizer is not None else None
        done = from_uniter(published, given_sizes(args), pieces, tuple(args.ignore))
        if args.layout not in ("auto", done.record["layout"]):
            raise UserError(f"{published.path} has the layout of {done.record['layout']}, not {args.layout}; leave --layout out.")
    if any(value.dtype == torch.float64 for value in published.tensors.values()):
        done.notes.append("float64 values are rounded to float32")
    done.record["sha256"] = sha256_of(published.path)
    if tokenizer is None:
        done.notes.append("no tokenizer was given: shards are taken to be packed with the right one")
    write_folder(done, tokenizer, args.out)
    print(told(done, published.path, args.out))


def refuse_others(args: argparse.Namespace, kind: str, source: Path) -> None:
    """UserError for an option that this conversion would not read."""
    for other, names in OPTIONS.items():
        for name in names:
            if other != kind and getattr(args, name) not in (None, []):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is for {WHOSE[other]}, and {source} is {WHOSE[kind]}; leave it out.")


def option_of(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as YAML reads it."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--option {text} is not KEY=VALUE, such as cross_attn=t2i; write it so.")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value of --option {text} cannot be read; quote it.") from error


def given_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line and a config file say of the sizes."""
    beside = args.source / "config.json" if args.source.is_dir() else None
    path = args.config or (beside if beside is not None and beside.is_file() else None)
    given = read_json_object(path) if path is not None else {}
    if given.get("model_type", "bert") != "bert":
        raise UserError(f"{path} has model_type '{given['model_type']}', where BERT's or UNITER's is needed; check --config.")
    asked = {"region_dim": args.region_dim, "num_region_classes": args.region_classes}
    return given | {key: value for key, value in asked.items() if value is not None}


def tokenizer_beside(source: Path) -> Any:
    """The tokenizer in a Hugging Face folder, if there is one."""
    files = ("tokenizer.json", "vocab.txt")
    if not source.is_dir() or not (held := [source / name for name in files if (source / name).is_file()]):
        return None
    return wordpiece_tokenizer(str(source if held[0].name == "tokenizer.json" else held[0]))


def write_folder(done: Converted, tokenizer: Any, out: Path) -> None:
    """Whole or not at all."""
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    logging.disable_progress_bar()
    temporary.parent.mkdir(parents=True, exist_ok=True)
    done.model.save_pretrained(temporary)
    if tokenizer is not None:
        tokenizer.save_pretrained(temporary)
    write_json(temporary / RECORD, done.record)
    source = {"layout": done.record["layout"], "file": done.record["source"], "sha256": done.record["sha256"]}
    Card(kind=str(done.model.config.model_type), source=source, notes=done.notes).write(temporary)
    write_checksums(temporary)
    if out.exists():
        out.rmdir()
    temporary.rename(out)


def told(done: Converted, path: Path, out: Path) -> str:
    """What was found and done, for the user."""
    found = [f"{path}: {done.record['layout']} layout, {done.size}", *done.heads(), *done.notes]
    return "\n".join([*found, f"written to {out}; start a run from it with init={out}"])


def export(args: argparse.Namespace) -> None:
    """A folder of ours -> one file in the layout of the code the method was published with."""
    folder, _ = find_checkpoint(args.source)
    refuse_others(args, "way back", folder)
    if args.out.suffix not in (".pt", ".pth", ".bin", ".tar"):
        raise UserError(f"--out {args.out} names no .pt, .pth, .bin or .tar file; {args.source} becomes a file of torch.save.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(folder)
    record = read_object(folder / RECORD, RECORD_SHAPE, "a record of tagsds-convert") if (folder / RECORD).is_file() else None
    layout = name_of(model) or "uniter"
    if args.layout not in ("auto", layout):
        raise UserError(f"{folder} holds a model of layout {layout}, not {args.layout}; leave --layout out.")
    dtype = DTYPES[args.dtype] if args.dtype else None
    try:
        held = WRITERS.get(layout, to_matcher)(model, record, dtype)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        if record is None:
            raise
        raise UserError(f"{folder / RECORD} is not the record of this model ({first_line(error)}); remove it.") from error
    write_published(args.out, held)
    print(f"{folder}: written to {args.out} in the {layout} layout")


main = command(run)

if __name__ == "__main__":
    main()
