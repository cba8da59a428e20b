"""Train one stage: `deepspeed tagsds/train.py --deepspeed_config ds_configs/zero2_bf16.json --recipe NAME --data SHARDS
--output DIR [key=value ...]`. Which stage is the recipe's business: pre-training, the retrieval baseline, TAGS and TAGS-DC
all run through the loop below."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: imports start at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tagsds.config import RunConfig, as_dict, load_config
from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.data.source import BankSource
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.engine import checkpoint
from tagsds.engine.build import (
    GradientNorm,
    adam_eps,
    build_engine,
    build_optimiser,
    init_distributed,
    learning_rate,
    lockstep_of,
)
from tagsds.engine.ds_config import read_ds_config, zero_stage
from tagsds.engine.monitor import Monitor
from tagsds.engine.offline import OfflineSource
from tagsds.engine.state import TrainState
from tagsds.engine.validation import Validation
from tagsds.engine.weights import average_buffers, averaged_buffers
from tagsds.errors import command
from tagsds.files import write_json
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.negatives.random import check_size
from tagsds.objectives import OBJECTIVES, Objective
from tagsds.objectives.retrieval.examples import as_markdown
from tagsds.prepare import batch_size, build_model, card_of, flat, prepare_output, tokens_of_pair, validates
from tagsds.ranks import World
from tagsds.scoring.registry import scorer_of


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


@dataclass
class Parts:
    """What the loop works with; `assemble` puts it together."""

    config: RunConfig
    world: World
    manifest: Manifest
    tokenizer: Any
    source: BankSource
    model: Any
    objective: Objective
    engine: Any
    offline: OfflineSource | None
    validation: Validation | None
    state: TrainState
    started: list[str]
    """heads that were begun, in words"""

    @property
    def heads(self) -> list[str]:
        return self.objective.heads(self.config)

    @property
    def slots(self) -> int:
        """Micro-batches of one optimiser step, of all ranks."""
        return self.config.batch.accumulation * self.world.size


def assemble(args: argparse.Namespace) -> Parts:
    """Everything before the first step; all checks that can be made before long work are made here."""
    config = load_config(args.recipe, args.overrides)
    config.data_folder = str(args.data)
    kind = OBJECTIVES[config.objective]
    manifest = read_manifest(args.data)
    tokenizer = load_tokenizer(manifest.folder / "tokenizer")
    vocab = Vocabulary.of(tokenizer)
    world = init_distributed()

    source = BankSource(
        args.data, config.data, config.seed, world.rank, world.size, world.device, world.is_main, kind.needs_classes(config)
    )
    model: Any = build_model(config, manifest, vocab)
    started = kind.prepare(model, config)
    bank, _ = source.at(checkpoint.latest_step(args.output) if args.resume else 0)
    check_size(bank, kind.random_negatives(config), args.data)
    config.batch.pairs = world.agree(batch_size(config, bank, args.output if args.resume else None))
    del bank
    ds = read_ds_config(args.deepspeed_config, config, world.size, world.device.type == "cuda")
    prepare_output(args.output, config, args.resume, world)

    stage = zero_stage(ds)
    mining = torch.bfloat16 if config.negatives.dtype == "bf16" else None
    scorer = scorer_of(model, dtype=mining, lockstep=lockstep_of(stage, world))
    offline = None
    if kind.needs_candidates(config):
        offline = OfflineSource(config, manifest, source, model, scorer, args.output, world, stage)
    objective = kind(model, config, vocab, scorer)
    engine = build_engine(objective, build_optimiser(model, config.optimiser, ds), ds)
    state = TrainState(ranks=world.size, zero_stage=stage)
    if args.resume:
        checkpoint.load(engine, args.output, state)
    validation = None
    if validates(config):
        validation = Validation(config.validate, model, manifest, tokenizer, world, stage)
    return Parts(config, world, manifest, tokenizer, source, model, objective, engine, offline, validation, state, started)


def train(args: argparse.Namespace) -> None:
    run = assemble(args)
    config, world, state, source, model = run.config, run.world, run.state, run.source, run.model
    batch, log, steps, start = config.batch, config.log, config.optimiser.steps, run.state.step
    # matching pairs of one optimiser step: of a micro-batch x micro-batches of a rank x ranks
    true_pairs = batch.pairs * batch.accumulation * world.size
    all_captions = run.manifest.splits[config.data.split]["captions"]  # one epoch, in pairs
    card = partial(card_of, config, run.manifest, model.config.model_type, true_pairs)
    export = partial(checkpoint.export, model, run.tokenizer, trained_heads=run.heads, world=world, stage=state.zero_stage)
    norm = GradientNorm(run.engine)
    monitor = Monitor(args.output, world, steps, start, config.recipe)
    monitor.settings(flat(as_dict(config)))
    bank, checked = source.at(start)
    monitor.say(introduction(run, bank))

    model.train()
    for step in range(start, start if state.stopped else steps):
        del bank  # the source must hold the only reference: it frees the old window before it loads the next
        bank, window = source.at(step)
        if window != checked:
            checked = window
            check_size(bank, run.objective.random_negatives(config), args.data)
        candidates = run.offline.at(step, bank) if run.offline is not None else None
        lr = learning_rate(step, config.optimiser)
        for group in run.engine.optimizer.param_groups:
            group["lr"], group["eps"] = lr, adam_eps(step, config.optimiser)

        for micro in range(batch.accumulation):
            draw = Draw(config.seed, step, world.rank * batch.accumulation + micro)
            captions = source.positives(draw, batch.pairs, run.slots)
            torch.manual_seed(seed_of(config.seed, step, draw.slot, "dropout"))
            output = run.engine(bank, captions, draw, candidates)
            run.engine.backward(output.total)
            norm.before_step()  # the reduced gradient is whole here: the place to look at it, or to leave a step out
            run.engine.step()
            monitor.add(output, len(captions))

        # the step is done: what is written and decided from here on sees the new weights
        state.step = done = step + 1
        state.true_pairs += true_pairs
        if done % log.every == 0 or done == steps:
            monitor.log(done, {"lr": lr, "gradient_norm": norm.value(), "epoch": done * true_pairs / all_captions})
        if log.panel_every and done % log.panel_every == 0:
            panel = Draw(config.seed, step, 0)  # the same captions on all ranks only where they share the bank
            first = source.positives(panel, batch.pairs, run.slots)[:2] if source.whole else captions[:2]
            if (examples := run.objective.panel(bank, first, panel, run.tokenizer)) is not None:
                monitor.text("written negatives", as_markdown(examples), done)
        # exports come before the checkpoint: a run resumed from it does not come back here
        if run.validation is not None and run.validation.due(done):
            figures, keep = run.validation.run(), config.validate.keep
            if state.judge(run.validation.figure, figures[keep], config.validate.patience):
                best = f"{figures[keep]:.2f} ({run.validation.figure})"
                with averaged_buffers(model, world):
                    export(folder=args.output / "export-best", card=partial(card, done, best))
            monitor.validated(done, figures, keep, f"{state.best:.1f} at {state.best_step}")
        if done in log.export_at and done < steps:
            average_buffers(model, world)
            export(folder=args.output / f"export-step{done}", card=partial(card, done))
        ending = done == steps or state.stopped  # a signal to save and leave would come in here
        if (log.checkpoint_every and done % log.checkpoint_every == 0) or ending:
            average_buffers(model, world)
            oldest = checkpoint.save(run.engine, args.output, state, log.keep_checkpoints, world)
            if run.offline is not None:
                run.offline.forget(oldest)
        monitor.step_done(done)
        if ending:
            break

    if run.objective.keeps_examples and (start < state.step or not (args.output / "examples.json").is_file()):
        written = examples_of_dev(run)
        if world.is_main:
            write_json(args.output / "examples.json", {"scores": monitor.recent, "negatives": written})
    # last of all: a run with an export is a finished run
    export(folder=args.output / "export", card=partial(card, state.step))
    monitor.close()
    if world.is_main:
        print(f"{config.recipe}: {ending_of(state)}; Hugging Face folder in {args.output / 'export'}")


def introduction(run: Parts, bank: Bank) -> str:
    """What will be trained, on what, and the arithmetic of the batch."""
    config, world, batch, state = run.config, run.world, run.config.batch, run.state
    true_pairs = batch.pairs * run.slots
    pairs, captions = true_pairs * config.optimiser.steps, run.manifest.splits[config.data.split]["captions"]
    parameters = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in run.model.parameters())
    return (
        f"{config.recipe}: {parameters:,} parameters, {world.size} rank(s) on {world.device.type}, ZeRO {state.zero_stage}, "
        f"{bank.num_images:,} images and {bank.num_captions:,} captions in memory ({bank.gib():.2f} GiB)"
        + (f", from step {state.step}" if state.step else "")
        + (f"; heads begun: {', '.join(run.started)}" if run.started else "")
        + ("" if config.init or not run.objective.ranks else "; no init given: the model starts untrained")
        + f"\n{batch.pairs} pairs a micro-batch x {batch.accumulation} x {world.size} rank(s) = {true_pairs} true pairs a step, "
        f"{true_pairs * tokens_of_pair(bank):,.0f} tokens in them on average; {config.optimiser.steps:,} steps = {pairs:,} pairs = "
        f"{pairs / captions:.1f} epochs of {captions:,} captions"
        + (f"\nvalidation every {config.validate.every} steps: {run.validation.figure}" if run.validation else "")
    )


def examples_of_dev(run: Parts) -> list[dict[str, Any]]:
    """The objective's examples of the first captions of the first dev images, for the report; [] where there is nothing to show."""
    config = run.config
    if "dev" not in run.manifest.splits or not config.log.examples:
        return []
    dev, _ = load_bank(run.manifest.folder, "dev", first=config.log.examples, checksum=False, classes=False)
    dev = dev.to(run.world.device)
    captions = dev.captions_of_image.values[dev.captions_of_image.offsets[:-1]]
    return run.objective.panel(dev, captions, Draw(config.seed, config.optimiser.steps, 0), run.tokenizer) or []


def ending_of(state: TrainState) -> str:
    """How a run ended, in one line."""
    best = f"best {state.figure}: {state.best:.2f} after step {state.best_step} (export-best)" if state.best is not None else ""
    if state.stopped:
        return f"stopped after {state.step} steps, {state.not_better} validations without a better one; {best}"
    return f"done after {state.step} steps" + (f"; {best}" if best else "")


def main(argv: list[str] | None = None) -> None:
    command(lambda: train(parse(argv)))()


if __name__ == "__main__":
    main()
