"""Train one stage: `deepspeed tagsds/train.py --deepspeed_config ds_configs/zero2_bf16.json --recipe NAME --data SHARDS
--output DIR [key=value ...]`. Which stage is the recipe's business: pre-training, the retrieval baseline, TAGS and TAGS-DC
all run through the loop below."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: imports start at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from functools import partial
from typing import Any

import torch

from tagsds.config import RunConfig, load_config
from tagsds.data.shards import load_bank
from tagsds.data.source import BankSource
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.engine import checkpoint
from tagsds.engine.build import (
    GradientNorm,
    adam_eps,
    average_buffers,
    build_engine,
    build_optimiser,
    init_distributed,
    learning_rate,
    lockstep_of,
    train_only,
)
from tagsds.engine.ds_config import read_ds_config, zero_stage
from tagsds.engine.monitor import Monitor
from tagsds.engine.offline import OfflineSource, uses_candidates
from tagsds.errors import command
from tagsds.files import write_json
from tagsds.formats.manifest import read_manifest
from tagsds.models import UniterModel
from tagsds.models.uniter.initialise import HEADS, initialise_heads
from tagsds.negatives.random import check_size
from tagsds.objectives import OBJECTIVES
from tagsds.objectives.examples import as_markdown, written_examples
from tagsds.prepare import batch_size, build_model, card_of, prepare_output, random_negatives
from tagsds.scoring.scorer import Scorer


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a name in tagsds/recipes or a YAML file")
    parser.add_argument("--data", required=True, help="folder of shards made by tagsds-pack")
    parser.add_argument("--output", required=True, type=Path, help="folder of this run")
    parser.add_argument("--deepspeed_config", required=True, help="a JSON of ds_configs/")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output, if there is one")
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the recipe's, e.g. optimiser.lr=1e-4")
    return parser.parse_intermixed_args(argv)


def train(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    config.data_folder = str(args.data)
    manifest = read_manifest(args.data)
    tokenizer = load_tokenizer(manifest.folder / "tokenizer")
    vocab = Vocabulary.of(tokenizer)
    world = init_distributed()

    mix = config.pretrain.mix
    needs_classes = config.objective == "pretrain" and bool(mix.get("mrckl") or mix.get("mrc"))
    source = BankSource(args.data, config.data, config.seed, world.rank, world.size, world.device, world.first, needs_classes)
    model = build_model(config, manifest, vocab)
    make = OBJECTIVES[config.objective]
    heads, started = make.heads(config), []
    if isinstance(model, UniterModel):
        train_only(model, heads, HEADS)
        started = initialise_heads(model, heads)
    bank, checked = source.at(checkpoint.latest_step(args.output) if args.resume else 0)
    drawn = random_negatives(config)
    check_size(bank, drawn, args.data)
    config.batch.pairs = world.agree(batch_size(config, bank, args.output if args.resume else None))
    ds = read_ds_config(args.deepspeed_config, config, world.size, world.device.type == "cuda")
    prepare_output(args.output, config, args.resume, world)

    stage = zero_stage(ds)
    mining = torch.bfloat16 if config.negatives.dtype == "bf16" else None
    scorer: Any = None  # a matcher compares, it scores no pairs one by one
    if isinstance(model, UniterModel):
        scorer = Scorer(model, dtype=mining, lockstep=lockstep_of(stage, world))
    offline = None
    if uses_candidates(config):
        offline = OfflineSource(config, manifest, source, model, scorer, args.output, world, stage)
    objective = make(model, config, vocab, scorer)
    engine = build_engine(objective, build_optimiser(model, config.optimiser, ds), ds)

    # slots of one optimiser step: all micro-batches of all ranks
    per_rank = config.batch.accumulation
    slots = per_rank * world.size
    steps = config.optimiser.steps
    start = checkpoint.load(engine, args.output, world, stage) if args.resume else 0
    norm = GradientNorm(engine)
    log, monitor = config.log, Monitor(args.output, world, steps, start, config.recipe)
    true_pairs = config.batch.pairs * slots
    card = partial(card_of, config, manifest, true_pairs)
    all_captions = manifest.splits[config.data.split]["captions"]
    if world.first:
        monitor.bar.write(
            f"{config.recipe}: {sum(p.numel() for p in model.parameters()):,} parameters, {world.size} rank(s) on "
            f"{world.device.type}, ZeRO {stage}, {true_pairs} true pairs a step, {bank.num_images:,} images and "
            f"{bank.num_captions:,} captions in memory ({bank.gib():.2f} GiB)"
            + (f", from step {start}" if start else "")
            + (f"; heads begun: {', '.join(started)}" if started else "")
            + ("" if config.init or config.objective == "pretrain" else "; no init given: the encoder starts untrained")
        )

    model.train()
    for step in range(start, steps):
        del bank  # the source must hold the only reference: it frees the old window before it loads the next
        bank, window = source.at(step)
        if window != checked:
            checked = window
            check_size(bank, drawn, args.data)
        candidates = offline.at(step, bank) if offline is not None else None
        lr = learning_rate(step, config.optimiser)
        for group in engine.optimizer.param_groups:
            group["lr"], group["eps"] = lr, adam_eps(step, config.optimiser)
        for micro in range(per_rank):
            draw = Draw(config.seed, step, world.rank * per_rank + micro)
            captions = source.positives(draw, config.batch.pairs, slots)
            torch.manual_seed(seed_of(config.seed, step, draw.slot, "dropout"))
            output = engine(bank, captions, draw, candidates)
            engine.backward(output.total)
            norm.before_step()
            engine.step()
            monitor.add(output, len(captions))
        done = step + 1
        if done % log.every == 0 or done == steps:
            monitor.log(done, {"lr": lr, "gradient_norm": norm.value(), "epoch": done * true_pairs / all_captions})
        if log.panel_every and done % log.panel_every == 0 and config.objective == "retrieval" and objective.writes:
            panel = Draw(config.seed, step, 0)  # the same captions on all ranks only where they share the bank
            first = source.positives(panel, config.batch.pairs, slots)[:2] if source.whole else captions[:2]
            assert isinstance(model, UniterModel)
            examples = written_examples(model, scorer, bank, first, config, vocab, tokenizer, panel)
            monitor.text("written negatives", as_markdown(examples), done)
        if done in log.export_at and done < steps:  # before the checkpoint: a run resumed from it does not come back here
            average_buffers(model, world)
            folder = args.output / f"export-step{done}"
            checkpoint.export(engine, model, tokenizer, folder, heads, world, stage, partial(card, done))
        if (log.checkpoint_every and done % log.checkpoint_every == 0) or done == steps:
            average_buffers(model, world)
            oldest = checkpoint.save(engine, args.output, done, log.keep_checkpoints, world, stage)
            if offline is not None:
                offline.forget(oldest)
        monitor.bar.update()

    if config.objective == "retrieval" and (start < steps or not (args.output / "examples.json").is_file()):
        negatives: list = []
        if objective.writes and isinstance(model, UniterModel) and "dev" in manifest.splits and log.examples:
            negatives = examples_of_dev(args.data, config, model, scorer, vocab, tokenizer, world)
        if world.first:
            found = {"scores": monitor.recent, "negatives": negatives}
            write_json(args.output / "examples.json", found)
    # last of all: a run with an export is a finished run
    checkpoint.export(engine, model, tokenizer, args.output / "export", heads, world, stage, partial(card, steps))
    monitor.close()
    if world.first:
        print(f"{config.recipe}: done after {steps} steps; Hugging Face folder in {args.output / 'export'}")


def examples_of_dev(data: str, config: RunConfig, model: UniterModel, scorer: Scorer, vocab, tokenizer, world) -> list:
    """What the encoder writes for the first captions of the first dev images, for the report."""
    dev, _ = load_bank(data, "dev", first=config.log.examples, checksum=False, classes=False)
    dev = dev.to(world.device)
    captions = dev.captions_of_image.values[dev.captions_of_image.offsets[:-1]]
    draw = Draw(config.seed, config.optimiser.steps, 0)
    return written_examples(model, scorer, dev, captions, config, vocab, tokenizer, draw)


def main(argv: list[str] | None = None) -> None:
    command(lambda: train(parse(argv)))()


if __name__ == "__main__":
    main()
