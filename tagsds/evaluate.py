"""Recall of a checkpoint, exactly: every image with every caption, in fp32, in one process or several.

    tagsds-evaluate --checkpoint RUN --data SHARDS --split test [--pairs SHARDS/edits/test]
    tagsds-evaluate --checkpoint RUN --ensemble RUN2 ...                              also the average of the two
    tagsds-evaluate --checkpoint RUN --shortlist MATCHER_RUN --rerank 16 64 ...       also the first K of a matcher only
    torchrun --nproc-per-node 8 -m tagsds.evaluate --checkpoint ...
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file (`deepspeed tagsds/evaluate.py`): imports start at the repository
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tagsds.data.shards import Manifest, load_bank, read_manifest
from tagsds.data.vocabulary import load_tokenizer
from tagsds.errors import UserError
from tagsds.evaluators.edits import score_edits
from tagsds.evaluators.ensemble import member_names
from tagsds.evaluators.evaluation import evaluate, first_captions, retrieval_results, shared_captions
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.files import sha256_of
from tagsds.formats.results import write_results
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.card import record_recalls
from tagsds.models.load import check_data, ensure_rank_head, find_checkpoint, load_model, read_config
from tagsds.provenance import provenance
from tagsds.ranks import World, run_command
from tagsds.reporting.table import results_table
from tagsds.scoring.scorer import Scorer

__all__ = [
    "Scorer", "evaluate", "first_captions", "main", "read_pairs", "retrieval_results", "score_edits", "shared_captions",
]  # fmt: skip

DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # None: the model's own precision


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tagsds-evaluate", description="Recall of a checkpoint on packed shards.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a training run, or a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of packed shards (with manifest.json)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--first", type=int, metavar="N", help="rank only the first N images (all of them otherwise)")
    parser.add_argument("--captions-per-image", type=int, default=5, metavar="N", help="first N of each image; 0: all")
    parser.add_argument("--pairs", type=Path, nargs="+", default=[], metavar="FILE", help="edited captions, JSON")
    parser.add_argument("--skip-missing-pairs", action="store_true", help="leave out pairs of images outside the split")
    parser.add_argument("--no-retrieval", action="store_true", help="only score the --pairs")
    parser.add_argument("--coco-folds", action="store_true", help="also COCO 1K: mean of five folds of 1,000 images")
    parser.add_argument("--ensemble", type=Path, nargs="+", default=[], metavar="RUN", help="average with these models too")
    parser.add_argument("--shortlist", type=Path, metavar="RUN", help="a matcher that chooses what is scored (--rerank)")
    parser.add_argument("--rerank", type=int, nargs="+", default=[], metavar="K", help="score the matcher's first K again")
    parser.add_argument("--no-exact", action="store_true", help="with --shortlist: leave the exact scoring away")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16 is faster and not exact")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of a chunk; less memory, same result")
    parser.add_argument("--output", type=Path, help="results file (otherwise RUN/results-SPLIT.json)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    options = parser.parse_args(arguments)
    check_options(options)
    return options


def check_options(options: argparse.Namespace) -> None:
    """UserError for numbers out of range, and for options that do not go together."""
    least_of = {"first": 1, "captions_per_image": 0, "max_tokens": 1}
    numbers = [(name, getattr(options, name), least) for name, least in least_of.items()]
    for name, value, least in [*numbers, *(("rerank", k, 1) for k in options.rerank)]:
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a whole number of at least {least}.")
    if options.no_retrieval and not options.pairs:
        raise UserError("--no-retrieval leaves nothing to do; give --pairs too, or leave it away.")
    if options.rerank and not options.shortlist:
        raise UserError("--rerank needs a matcher to choose the pairs; give its run with --shortlist.")
    if options.shortlist and not options.rerank:
        raise UserError("--shortlist needs to know how many to score again; give --rerank 16 32 64 128, for example.")
    if options.no_exact and not options.shortlist:
        raise UserError("--no-exact leaves nothing to rank by; give --shortlist and --rerank too, or leave it away.")
    for name, given in (("ensemble", options.ensemble), ("coco-folds", options.coco_folds)):
        if options.no_exact and given:
            raise UserError(f"--{name} needs the scores of all pairs; leave --no-exact away.")
    if options.no_retrieval and options.shortlist:
        raise UserError("--shortlist ranks images and captions; leave --no-retrieval away.")


def check_sizes(options: argparse.Namespace, images: int) -> None:
    """UserError where the split is too small for what is asked, before anything is read."""
    if options.first is not None and options.first > images:
        raise UserError(f"--first {options.first} is more than the {images} images of '{options.split}'; lower it.")
    if options.coco_folds and (options.first or images) != 5000:
        raise UserError(
            f"--coco-folds needs 5000 images, split '{options.split}' gives {options.first or images}; leave it away."
        )


def check_kinds(options: argparse.Namespace, kinds: dict[Path, bool]) -> None:
    """UserError where encoders and matchers are mixed up; `kinds`: path as given -> is it the pair encoder?"""
    names = "the pair encoder", "a matcher"
    for path in options.ensemble:
        if kinds[path] != kinds[options.checkpoint]:
            ours, theirs = names if kinds[options.checkpoint] else names[::-1]
            raise UserError(
                f"--ensemble {path} is {theirs} and --checkpoint {options.checkpoint} is {ours}, whose scores have no common "
                "scale; give models of one kind."
            )
    if options.shortlist and kinds[options.shortlist]:
        raise UserError(f"--shortlist {options.shortlist} is {names[0]}; give the run of a matcher (VSRN, SCAN or BFAN).")
    if options.shortlist and not kinds[options.checkpoint]:
        raise UserError(f"--checkpoint {options.checkpoint} is {names[1]}; --rerank needs a run of the pair encoder there.")


def load_models(options: argparse.Namespace, manifest: Manifest, device: torch.device) -> tuple[dict[Path, Any], dict[Path, str]]:
    """Every model that the options name, by its path, on the device; and what each scores with: 'rank', 'itm', 'similarity'.

    All configs are checked before the first weight is read, and all weights before the shards.
    """
    paths = [options.checkpoint, *options.ensemble, *([options.shortlist] if options.shortlist else [])]
    folders = {path: find_checkpoint(path)[0] for path in paths}
    configs = {path: read_config(folder) for path, folder in folders.items()}
    check_kinds(options, {path: isinstance(config, UniterConfig) for path, config in configs.items()})
    for path, config in configs.items():
        check_data(config, folders[path], manifest)
    models = {path: load_model(folder) for path, folder in folders.items()}
    heads = {path: ensure_rank_head(model) if isinstance(model, UniterModel) else "similarity" for path, model in models.items()}
    for model in models.values():
        torch.nn.Module.to(model, device)  # in place; transformers' own `to` is not typed
    return models, heads


def run(options: argparse.Namespace, world: World) -> None:
    """Check, load, evaluate; then the first rank writes and prints."""
    folder, home = find_checkpoint(options.checkpoint)
    manifest = read_manifest(options.data)
    manifest.shards(options.split)  # an unknown split ends it here
    check_sizes(options, manifest.splits[options.split]["images"])
    name, *others = member_names([find_checkpoint(path)[0] for path in (options.checkpoint, *options.ensemble)])
    models, heads = load_models(options, manifest, world.device)
    first = None if options.pairs else options.first  # edits may name any image of the split
    bank, manifest = load_bank(options.data, options.split, first, progress=world.first, classes=False)
    edits = read_pairs(options.pairs, bank.keys, options.skip_missing_pairs)
    results = evaluate(
        models[options.checkpoint],
        bank.to(world.device),
        load_tokenizer(manifest.folder / "tokenizer"),
        first=options.first,
        captions_per_image=options.captions_per_image,
        edits=edits,
        retrieval=not options.no_retrieval,
        with_coco_folds=options.coco_folds,
        name=name,
        ensemble={other: models[path] for other, path in zip(others, options.ensemble, strict=True)},
        shortlist=models[options.shortlist] if options.shortlist else None,
        rerank=options.rerank,
        exact=not options.no_exact,
        dtype=DTYPES[options.dtype],
        max_tokens=options.max_tokens,
        progress=True,
        world=world,
    )
    if results is not None:
        results |= {"split": options.split, "first": options.first}
        settings = {"head": heads[options.checkpoint], "dtype": options.dtype, "ranks": world.size}
        settings |= {"pairs": [str(e.file) for e in edits]}
        if options.ensemble:
            settings["ensemble"] = [source_of(path, heads[path]) for path in options.ensemble]
        if options.shortlist:
            settings["shortlist"] = source_of(options.shortlist, heads[options.shortlist])
            results["shortlist"] = {"checkpoint": settings["shortlist"]["checkpoint"], **results["shortlist"]}
        results["provenance"] = provenance(folder, options.data, **settings)
        output = options.output or home / f"results-{options.split}.json"
        write_results(output, results)
        print(results_table(results))
        print(f"written to {output}")
        record_recalls(folder, options.split, options.data, results)


def source_of(path: Path, head: str) -> dict[str, str | None]:
    """What a further model was: its folder, its weights, what it scores with."""
    folder = find_checkpoint(path)[0]
    weights = folder / "model.safetensors"
    digest = sha256_of(weights) if weights.is_file() else None
    return {"checkpoint": str(folder.resolve()), "weights_sha256": digest, "head": head}


def main(arguments: Sequence[str] | None = None) -> None:
    """tagsds-evaluate."""
    run_command(lambda: parse_arguments(arguments), run)


if __name__ == "__main__":
    main()
