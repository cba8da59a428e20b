"""Look at a run before it is queued: everything that `tagsds.train` would refuse after hours of waiting, found in seconds.

    python -m tagsds.preflight --recipe NAME --data SHARDS --output RUN --deepspeed_config FILE --ranks N [key=value ...]
    python -m tagsds.preflight --checkpoint RUN --data SHARDS --split test        before an evaluation, or mining

Nothing is written. What is wrong is said in one sentence, with exit status 2. Otherwise a line says what will be trained, and a
warning follows where the batch is not the published one. Memory is the business of `tagsds.train --estimate`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tagsds.config import RunConfig, family, load_config
from tagsds.data.shard_files import check_shard
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.engine.ds_config import read_ds_config, zero_stage
from tagsds.engine.offline import read_candidates
from tagsds.errors import UserError, command
from tagsds.files import check_writable
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.models.load import check_data, find_checkpoint, read_config
from tagsds.negatives.random import check_counts
from tagsds.objectives import OBJECTIVES
from tagsds.prepare import build_model, check_output, validates

PUBLISHED_RANKS = {"published-base": 8, "published-pretrain-base": 8, "published-matcher": 1}
"""GPUs that the published runs had, by the recipe that a family of recipes is based on"""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tagsds.preflight", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", help="a name in tagsds/recipes or a YAML file")
    what.add_argument("--checkpoint", type=Path, help="a run, or a Hugging Face folder, to be evaluated or mined with")
    parser.add_argument("--data", required=True, help="folder of shards made by tagsds-pack")
    parser.add_argument("--output", type=Path, help="folder of the run")
    parser.add_argument("--deepspeed_config", help="a JSON file, or the name of one: zero2_bf16")
    parser.add_argument("--ranks", type=int, default=1, help="processes of the run, one a GPU (default 1)")
    parser.add_argument("--cpu", action="store_true", help="the ranks have no GPU")
    parser.add_argument("--split", default="", help="a further split that the corpus must have, for the evaluation")
    parser.add_argument("--init-later", action="store_true", help="init= names what an earlier job is still to write")
    parser.add_argument("--exports", default="", metavar="FOLDER", help="what the next stage starts from: the recipe must write it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the recipe's")
    args = parser.parse_intermixed_args(argv)
    if args.recipe and not (args.output and args.deepspeed_config):
        parser.error("--recipe needs --output and --deepspeed_config too")
    return args


def check_checkpoint(args: argparse.Namespace) -> list[str]:
    """A line on the checkpoint; UserError where it is no whole one, or does not fit the shards."""
    manifest = read_manifest(args.data)
    check_shards(manifest, [args.split or "test"])
    folder, _ = find_checkpoint(args.checkpoint)
    config = read_config(folder)
    check_data(config, folder, manifest)
    return [f"{config.model_type} in {folder} with split {args.split or 'test'} of {manifest.folder} on {args.ranks} rank(s)"]


def check_run(args: argparse.Namespace) -> list[str]:
    """What will be trained, and warnings, a line each; UserError for what the trainer would refuse."""
    if args.ranks < 1:
        raise UserError(f"--ranks is {args.ranks}; give the number of processes, at least 1.")
    config = load_config(args.recipe, args.overrides)
    manifest = read_manifest(args.data)
    check_corpus(config, manifest, [args.split] if args.split else [])
    vocab = Vocabulary.of(load_tokenizer(manifest.folder / "tokenizer"))
    ds = read_ds_config(args.deepspeed_config, config, args.ranks, not args.cpu)
    kind = OBJECTIVES[config.objective]
    if not args.init_later:
        kind.prepare(build_model(config, manifest, vocab), config)
    if kind.needs_candidates(config):
        read_candidates(config, manifest)
    check_export(config, args.exports)
    check_writable(args.output)
    check_output(args.output, config, resume=True)
    return [introduction(config, args, zero_stage(ds)), *published_batch(config, args), *kind.advice(config)]


def check_corpus(config: RunConfig, manifest: Manifest, more: list[str]) -> None:
    """The shards of all splits that are read are there in their full length, and hold enough for the negatives."""
    check_shards(manifest, [config.data.split, *([config.validate.split] if validates(config) else []), *more])
    split = manifest.splits[config.data.split]
    size = sum(shard["bytes"] for shard in split["shards"]) / 2**30
    if size <= config.data.max_gib:  # else it is read in windows, each of which is looked at when it is loaded
        mean = -(-split["captions"] // split["images"])
        count = OBJECTIVES[config.objective].random_negatives(config)
        check_counts(split["images"], split["captions"], mean, count, str(manifest.folder))


def check_shards(manifest: Manifest, splits: list[str]) -> None:
    for split in splits:
        for shard in manifest.shards(split):
            check_shard(manifest.folder, shard, checksum=False)


def check_export(config: RunConfig, folder: str) -> None:
    """The run leaves `folder`, from which another starts."""
    written = ["export", *(["export-best"] if validates(config) else [])]
    written += [f"export-step{step}" for step in config.log.export_at if step < config.optimiser.steps]
    if folder and folder not in written:
        raise UserError(
            f"recipe {config.recipe} writes {', '.join(written)} and no {folder}, from which the next stage starts; set "
            "log.export_at to its step, or name one of those."
        )


def pairs_of(config: RunConfig, ranks: int) -> tuple[int, str]:
    """True pairs of a step (word pieces and regions where the recipe counts those), and their unit."""
    size, unit = (config.batch.tokens, "tokens") if config.batch.tokens else (config.batch.pairs, "true pairs")
    return size * config.batch.accumulation * ranks, unit


def introduction(config: RunConfig, args: argparse.Namespace, stage: int) -> str:
    total, unit = pairs_of(config, args.ranks)
    state = "finished already" if (args.output / "export" / "config.json").is_file() else ""
    if not state and (args.output / "checkpoints" / "latest").is_file():
        state = f"goes on from {(args.output / 'checkpoints' / 'latest').read_text().strip()}"
    return (
        f"{config.recipe} into {args.output}: {total:,} {unit} a step on {args.ranks} rank(s), ZeRO {stage}, "
        f"{config.optimiser.steps:,} steps, learning rate {config.optimiser.lr:g}, from {config.init or 'fresh weights'}"
        + (f"; {state}" if state else "")
    )


def published_batch(config: RunConfig, args: argparse.Namespace) -> list[str]:
    """A warning where a published recipe sees another number of pairs in a step than the published run did. A run that goes on
    keeps its number."""
    if (args.output / "checkpoints" / "latest").is_file():
        return []
    known = [ranks for name, ranks in PUBLISHED_RANKS.items() if name in family(args.recipe)]
    if not known:
        return []
    published, unit = pairs_of(load_config(args.recipe), known[0])
    total, _ = pairs_of(config, args.ranks)
    if total == published:
        return []
    return [
        f"warning: {total:,} {unit} a step where the published run has {published:,} ({known[0]} GPU(s)); "
        "set batch.accumulation or batch.pairs so that they agree, or choose learning rate and steps anew."
    ]


def run() -> None:
    args = parse()
    for line in check_run(args) if args.recipe else check_checkpoint(args):
        print(line)


main = command(run)

if __name__ == "__main__":
    main()
