"""Recall of a checkpoint, exactly: every image with every caption, in fp32, in one process or several.

    tagsds-evaluate --checkpoint RUN --data SHARDS --split test [--pairs SHARDS/edits/test]
    torchrun --nproc-per-node 8 -m tagsds.evaluate --checkpoint ...
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file (`deepspeed tagsds/evaluate.py`): imports start at the repository
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank, read_manifest
from tagsds.data.vocabulary import load_tokenizer
from tagsds.errors import UserError, command
from tagsds.models import UniterModel
from tagsds.models.load import (
    check_captions,
    check_data,
    ensure_rank_head,
    find_checkpoint,
    load_model,
    read_config,
)
from tagsds.reporting.results import FORMAT, VERSION, provenance, ranking_examples, score_histogram, write_results
from tagsds.retrieval.metrics import coco_folds, pair_accuracy, recalls
from tagsds.retrieval.pairs_file import EditPair, EditSet, read_pairs
from tagsds.retrieval.ranks import World, current_world, start_world, stop_world
from tagsds.retrieval.scorer import Scorer, score_matrix
from tagsds.retrieval.table import results_table

DTYPES = {"fp32": None, "bf16": torch.bfloat16}  # None: the model's own precision


def first_captions(bank: Bank, images: int, per_image: int) -> Tensor:
    """Numbers of the first `per_image` captions (0: all) of the first `images` images, image by image: int64 [C].

    COCO has images with six and seven captions; the published figures use five each.
    """
    rows = [bank.captions_of_image[image] for image in range(images)]
    return torch.cat([row[:per_image] if per_image else row for row in rows])


def shared_captions(bank: Bank, captions: Tensor) -> int:
    """How many of the captions (int64 [C]) another image has word for word: rounding orders those."""
    owners: dict[str, set[int]] = {}
    images = bank.image_of_caption[captions].tolist()
    for caption, image in zip(captions.tolist(), images, strict=True):
        owners.setdefault(bank.texts[caption], set()).add(image)
    return sum(len(owners[bank.texts[caption]]) > 1 for caption in captions.tolist())


def evaluate(
    model: UniterModel,
    bank: Bank,
    tokenizer: Any = None,
    *,
    first: int | None = None,
    captions_per_image: int = 5,
    edits: Sequence[EditSet] = (),
    retrieval: bool = True,
    with_coco_folds: bool = False,
    dtype: torch.dtype | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
    world: World | None = None,
) -> dict[str, Any] | None:
    """Recalls, accuracies by kind of edit, a sample of rankings, the time taken; None on all ranks but the first.

    model   on the device of the bank; its rank head decides (see `ensure_rank_head` for a pre-training checkpoint)
    first   only the first N images are ranked against each other; the edits use every image of the bank
    edits   need the tokenizer; `Scorer` is exact for dtype None
    """
    world = world or current_world()
    scorer = Scorer(model, max_tokens=max_tokens, dtype=dtype)
    results: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    started, scored = time.perf_counter(), 0
    if retrieval:
        count = bank.num_images if first is None else min(first, bank.num_images)
        captions = first_captions(bank, count, captions_per_image)
        check_captions(model.config.max_position_embeddings, bank, captions)
        images = torch.arange(count, device=bank.device)
        part = score_matrix(scorer, bank, world.share(images), captions, progress=progress and world.first)
        scores = world.gather(part, count)
        scored += count * len(captions)
        results |= {"images": count, "captions": len(captions), "captions_per_image": captions_per_image}
        if scores is not None:
            results |= retrieval_results(scores, bank, captions, with_coco_folds)
    if edits:
        results["edits"] = {}
        for kind in edits:
            true, false = score_edits(scorer, bank, tokenizer, kind.pairs, world, progress)
            scored += 2 * len(kind.pairs)
            if true is not None and false is not None:
                accuracy = pair_accuracy(true, false)
                results["edits"][kind.kind] = {"accuracy": accuracy, "pairs": len(kind.pairs), "skipped": kind.skipped}
    seconds = time.perf_counter() - started
    results |= {"seconds": seconds, "pairs_scored": scored, "pairs_per_second": scored / max(seconds, 1e-9)}
    return results if world.first else None


def retrieval_results(scores: Tensor, bank: Bank, captions: Tensor, with_coco_folds: bool = False) -> dict[str, Any]:
    """What follows from the score matrix [I, C]: images 0..I-1 of the bank, captions int64 [C]."""
    image_of_caption = bank.image_of_caption[captions]
    results: dict[str, Any] = {"recalls": recalls(scores, image_of_caption).as_dict()}
    results["shared_captions"] = shared_captions(bank, captions)
    if with_coco_folds:
        results["coco_1k"] = coco_folds(scores, image_of_caption).as_dict()
    results["examples"] = ranking_examples(scores, image_of_caption, bank, captions)
    results["score_histogram"] = score_histogram(scores, image_of_caption)
    return results


def score_edits(
    scorer: Scorer, bank: Bank, tokenizer: Any, pairs: Sequence[EditPair], world: World, progress: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Logits of the true and the false captions with their images, two [N]; None on all ranks but the first."""
    every = [text for pair in pairs for text in (pair.caption, pair.negative)]  # all ranks meet the same mistakes
    whole = tokenize_texts(tokenizer, every, scorer.model.config.max_position_embeddings)
    share = world.share(torch.arange(len(pairs)))
    mine = share.tolist()
    part = torch.empty(len(mine), 2, device=bank.device)
    if mine:
        table = whole.select(torch.stack([2 * share, 2 * share + 1], dim=1).flatten()).to(bank.device)
        images = torch.tensor([pairs[i].image for i in mine], device=bank.device)
        rows, image_of_row = torch.unique(images, return_inverse=True)
        text_of_pair = torch.arange(2 * len(mine), device=bank.device)
        packed = Pairs(table, bank.image_table(rows), text_of_pair, image_of_row.repeat_interleave(2))
        part = scorer(packed, progress=progress and world.first).view(-1, 2)
    both = world.gather(part, len(pairs))
    return (None, None) if both is None else (both[:, 0], both[:, 1])


def tokenize_texts(tokenizer: Any, texts: list[str], positions: int) -> Ragged:
    """Word pieces with [CLS] and [SEP], int64. UserError for a text longer than the model has positions."""
    rows = tokenizer(texts)["input_ids"]
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if len(rows[longest]) > positions:
        raise UserError(
            f"the caption '{texts[longest][:60]}...' of --pairs has {len(rows[longest])} word pieces, the checkpoint's "
            f"max_position_embeddings is {positions}; shorten it or remove the pair."
        )
    return Ragged.from_rows([torch.tensor(row, dtype=torch.int64) for row in rows])


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
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="bf16 is faster and not exact")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens of a chunk; less memory, same result")
    parser.add_argument("--output", type=Path, help="results file (otherwise RUN/results-SPLIT.json)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed's launcher adds it
    options = parser.parse_args(arguments)
    for name, least in (("first", 1), ("captions_per_image", 0), ("max_tokens", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a whole number of at least {least}.")
    if options.no_retrieval and not options.pairs:
        raise UserError("--no-retrieval leaves nothing to do; give --pairs too, or leave it away.")
    return options


def check_sizes(options: argparse.Namespace, images: int) -> None:
    """UserError where the split is too small for what is asked, before anything is read."""
    if options.first is not None and options.first > images:
        raise UserError(f"--first {options.first} is more than the {images} images of '{options.split}'; lower it.")
    if options.coco_folds and (options.first or images) != 5000:
        raise UserError(
            f"--coco-folds needs 5000 images, split '{options.split}' gives {options.first or images}; leave it away."
        )


def run(options: argparse.Namespace, world: World, device: torch.device) -> dict[str, Any] | None:
    """Check, load, evaluate, write: the results on the first rank, None on the others."""
    folder, home = find_checkpoint(options.checkpoint)
    manifest = read_manifest(options.data)
    manifest.shards(options.split)  # an unknown split ends it here
    check_sizes(options, manifest.splits[options.split]["images"])
    check_data(read_config(folder), folder, manifest)
    model = load_model(folder)
    head = ensure_rank_head(model)
    torch.nn.Module.to(model, device)  # in place; transformers' own `to` is not typed
    first = None if options.pairs else options.first  # edits may name any image of the split
    bank, manifest = load_bank(options.data, options.split, first, progress=world.first, classes=False)
    edits = read_pairs(options.pairs, bank.keys, options.skip_missing_pairs)
    results = evaluate(
        model,
        bank.to(device),
        load_tokenizer(manifest.folder / "tokenizer"),
        first=options.first,
        captions_per_image=options.captions_per_image,
        edits=edits,
        retrieval=not options.no_retrieval,
        with_coco_folds=options.coco_folds,
        dtype=DTYPES[options.dtype],
        max_tokens=options.max_tokens,
        progress=True,
        world=world,
    )
    if results is not None:
        results |= {"split": options.split, "first": options.first}
        settings = {"head": head, "dtype": options.dtype, "ranks": world.size, "pairs": [str(e.file) for e in edits]}
        results["provenance"] = provenance(folder, options.data, **settings)
        write_results(options.output or home / f"results-{options.split}.json", results)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """tagsds-evaluate."""

    def body() -> None:
        options = parse_arguments(arguments)
        world, device = start_world()
        try:
            results = run(options, world, device)
            if results is not None:
                print(results_table(results))
                home = find_checkpoint(options.checkpoint)[1]
                print(f"written to {options.output or home / f'results-{options.split}.json'}")
        except UserError:
            if int(os.environ.get("RANK", 0)):
                sys.exit(2)  # the first rank says it for all
            raise
        finally:
            stop_world()

    command(body)()


if __name__ == "__main__":
    main()
