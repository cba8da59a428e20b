"""Recall of a checkpoint, exactly: every image with every caption, in fp32, in one process or several.

    tagsds-evaluate --checkpoint RUN --data SHARDS --split test [--pairs SHARDS/edits/test]
    tagsds-evaluate --checkpoint RUN --ensemble RUN2 ...                              also the average of the two
    tagsds-evaluate --checkpoint RUN --shortlist MATCHER_RUN --rerank 16 64 ...       also the first K of a matcher only
    tagsds-evaluate --checkpoint RUN --evaluators recall eccv cxc --recall-at 50      what is measured, by name
    tagsds-evaluate --checkpoint RUN --scores FOLDER                                  scores in files; a killed run goes on
    torchrun --nproc-per-node 8 -m tagsds.evaluate --checkpoint ...
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file (`deepspeed tagsds/evaluate.py`): imports start at the repository
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import corpus_tokenizer
from tagsds.errors import UserError
from tagsds.evaluators import (
    EVALUATORS,
    Evaluator,
    Plan,
    Subject,
    check_evaluators,
    make_evaluators,
    prepare_evaluators,
    run_evaluators,
)  # fmt: skip
from tagsds.files import check_writable, sha256_of
from tagsds.formats.manifest import read_manifest
from tagsds.formats.results import write_results
from tagsds.models.card import read_card, record_recalls
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config
from tagsds.provenance import provenance
from tagsds.ranks import World, run_command
from tagsds.reporting.table import results_table
from tagsds.scoring.protocol import model_class
from tagsds.scoring.table import ScoreFiles, table_gib, weights_of

DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # None: the model's own precision


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tagsds-evaluate", description="Recall of a checkpoint on packed shards.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a training run, or a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of packed shards (with manifest.json)")
    parser.add_argument("--split", default="test")
    parser.add_argument("--first", type=int, metavar="N", help="rank only the first N images (all of them otherwise)")
    parser.add_argument("--captions-per-image", type=int, default=5, metavar="N", help="first N of each image; 0: all")
    names = ", ".join(EVALUATORS)
    help_of = f"what is measured: {names} (otherwise recall, and what further options ask for)"
    parser.add_argument("--evaluators", nargs="+", metavar="NAME", help=help_of)
    parser.add_argument("--no-retrieval", action="store_true", help="only score the --pairs")
    for evaluator in EVALUATORS.values():
        evaluator.add_options(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16 is faster and not exact")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of a chunk; less memory, same result")
    parser.add_argument("--scores", type=Path, metavar="FOLDER", help="keep all scores there; a killed run goes on with them")
    parser.add_argument("--score-table-gib", type=float, default=4.0, metavar="GIB",
                        help="a larger table of scores is kept in files while it is needed (4)")  # fmt: skip
    parser.add_argument("--output", type=Path, help="results file (otherwise RUN/results-SPLIT.json)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    options = parser.parse_args(arguments)
    check_options(options)
    return options


def check_options(options: argparse.Namespace) -> None:
    """UserError for numbers out of range, and for options that do not go together."""
    for name, least in {"first": 1, "captions_per_image": 0, "max_tokens": 1}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a whole number of at least {least}.")
    if not options.score_table_gib >= 0:
        raise UserError(f"--score-table-gib is {options.score_table_gib}; give GiB, 0 or more.")
    asked = any(evaluator.implied_by(options) for evaluator in EVALUATORS.values() if not evaluator.ranks)
    if options.no_retrieval and not asked:
        raise UserError("--no-retrieval leaves nothing to do; give --pairs or --proofread too, or omit it.")
    for evaluator in EVALUATORS.values():
        evaluator.check_options(options)


def chosen_evaluators(options: argparse.Namespace) -> list[Evaluator]:
    """Those that --evaluators names and those that other options imply."""
    names = dict.fromkeys(options.evaluators or [])
    names |= dict.fromkeys(name for name, evaluator in EVALUATORS.items() if evaluator.implied_by(options))
    evaluators = make_evaluators({name: EVALUATORS[name].settings_of(options) if name in EVALUATORS else None for name in names})
    for evaluator in evaluators:
        if options.no_exact and evaluator.needs_matrix:
            raise UserError(f"evaluator '{evaluator.name}' needs the scores of all pairs; omit --no-exact.")
        if options.no_retrieval and evaluator.ranks:
            raise UserError(f"evaluator '{evaluator.name}' ranks images and captions; omit --no-retrieval.")
    return evaluators


def run(options: argparse.Namespace, world: World) -> None:
    """Check, load, evaluate; then the first rank writes and prints."""
    evaluators = chosen_evaluators(options)
    folder, home = find_checkpoint(options.checkpoint)
    output = options.output or home / f"results-{options.split}.json"
    check_writable(output, folder=False)
    manifest = read_manifest(options.data)
    manifest.shards(options.split)  # an unknown split ends it here
    there = manifest.splits[options.split]["images"]
    if options.first is not None and options.first > there:
        raise UserError(f"--first {options.first} is more than the {there} images of '{options.split}'; lower it.")
    config = read_config(folder)
    read_card(folder)  # a damaged one is named now, not when all is scored
    check_evaluators(evaluators, Plan(manifest, options.split, model_class(config), options.first, folder))
    check_data(config, folder, manifest)
    model = load_model(folder)
    torch.nn.Module.to(model, world.device)  # in place; transformers' own `to` is not typed
    first = None if any(evaluator.any_image for evaluator in evaluators) else options.first
    bank, _ = load_bank(options.data, options.split, first, progress=world.is_main, classes=False)
    subject = Subject.of(
        model, bank.to(world.device), options.first, options.captions_per_image, world,
        tokenizer=corpus_tokenizer(manifest), dtype=DTYPES[options.dtype], max_tokens=options.max_tokens,
        progress=True,
    )  # fmt: skip
    head = subject.pair_scorer.ready()
    subject.files = score_files(options, folder, head, subject, output)
    prepare_evaluators(evaluators, subject)
    results = run_evaluators(evaluators, subject)
    if results is not None:
        results |= {"split": options.split, "first": options.first}
        settings = {"head": head, "dtype": options.dtype, "ranks": world.size, "pairs": []}
        settings["evaluators"] = [evaluator.name for evaluator in evaluators]
        for evaluator in evaluators:
            settings |= evaluator.sources()
        results["provenance"] = provenance(folder, options.data, **settings)
        write_results(output, results)
        print(results_table(results))
        print(f"written to {output}")
        record_recalls(folder, options.split, options.data, results)
        if subject.files and not options.scores:
            shutil.rmtree(subject.files.folder, ignore_errors=True)


def score_files(options: argparse.Namespace, folder: Path, head: str, subject: Subject, output: Path) -> ScoreFiles | None:
    """Where the table of all scores lies: in --scores, or beside the results where it exceeds --score-table-gib; else in memory."""
    if not options.scores and table_gib(subject.images, len(subject.captions)) <= options.score_table_gib:
        return None
    settings = {
        "weights": weights_of(folder), "data_sha256": sha256_of(options.data / "manifest.json"), "split": options.split,
        "captions_per_image": options.captions_per_image, "dtype": options.dtype, "head": head,
    }  # fmt: skip
    place = options.scores or output.with_name(f"{output.stem}-scores")
    return ScoreFiles(place, settings, max(options.score_table_gib, 0.1), subject.world)


def main(arguments: Sequence[str] | None = None) -> None:
    """tagsds-evaluate."""
    run_command(lambda: parse_arguments(arguments), run)


if __name__ == "__main__":
    main()
