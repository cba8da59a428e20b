"""Train one stage: `deepspeed tagsds/train.py --deepspeed_config ds_configs/zero2_bf16.json --recipe NAME --data SHARDS
--output DIR [key=value ...]`. Which stage is the recipe's business: pre-training, the retrieval baseline, TAGS and TAGS-DC
all run through one loop."""

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
from tagsds.data.augment import Augmentation
from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.data.source import BankSource
from tagsds.data.vocabulary import Vocabulary, corpus_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.engine import resume
from tagsds.engine.average import WeightAverage
from tagsds.engine.build import (
    adam_eps,
    build_engine,
    build_optimiser,
    gradient_norm,
    grouped_names,
    init_distributed,
    learning_rate,
    lockstep_of,
)
from tagsds.engine.checkpoint import Checkpoints
from tagsds.engine.ds_config import read_ds_config, zero_stage
from tagsds.engine.export import export
from tagsds.engine.guard import StepGuard
from tagsds.engine.interruption import TO_BE_CONTINUED, Interruption
from tagsds.engine.lock import lock_output
from tagsds.engine.monitor import Monitor
from tagsds.engine.offline import OfflineSource
from tagsds.engine.state import TrainState
from tagsds.engine.validation import Validation
from tagsds.engine.watchdog import Watchdog
from tagsds.engine.weights import average_buffers, averaged_buffers
from tagsds.errors import UserError, command
from tagsds.estimate import estimate
from tagsds.files import write_json
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.malloc import give_back_large_holes
from tagsds.negatives.random import check_size
from tagsds.objectives import OBJECTIVES, Objective
from tagsds.objectives.retrieval.examples import as_markdown
from tagsds.prepare import batch_size, build_model, card_of, flat, prepare_output, tokens_of_pair, validates
from tagsds.ranks import World, end_process
from tagsds.scoring.registry import scorer_of


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a name in tagsds/recipes or a YAML file")
    parser.add_argument("--data", required=True, help="folder of shards made by tagsds-pack")
    parser.add_argument("--output", type=Path, help="folder of this run; not needed with --estimate")
    parser.add_argument("--deepspeed_config", required=True, help="a JSON file, or the name of one: zero2_bf16")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output, if there is one")
    parser.add_argument(
        "--time-limit", type=float, default=0.0, metavar="MINUTES",
        help="save and leave after so many minutes, with status 75, as after SIGTERM, SIGUSR1 or `touch OUTPUT/STOP`",
    )
    parser.add_argument("--local_rank", type=int, default=0, help="set by the deepspeed launcher")
    parser.add_argument("--estimate", action="store_true", help="print memory, disk and hours of the run, and train nothing")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="with --estimate: ranks of the run")
    parser.add_argument("--gpu-gib", type=float, metavar="G", help="with --estimate: memory of a GPU; too small: exit status 2")
    parser.add_argument("--tflops", type=float, metavar="T", help="with --estimate: rate of a device, measured here where left out")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over the recipe's, e.g. optimiser.lr=1e-4")
    args = parser.parse_intermixed_args(argv)
    if args.output is None and not args.estimate:
        parser.error("the following arguments are required: --output")
    return args


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
    checkpoints: Checkpoints
    offline: OfflineSource | None
    validation: Validation | None
    augment: Augmentation
    average: WeightAverage
    state: TrainState
    watchdog: Watchdog
    started: list[str]
    """heads that were begun, in words"""
    lock: Any
    """the claim to the output folder; it ends with the process"""

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
    tokenizer = corpus_tokenizer(manifest)
    vocab = Vocabulary.of(tokenizer)
    world = init_distributed()
    lock = lock_output(args.output, world)
    watchdog = Watchdog(world, config.safety.hang_minutes, config.safety.long_hang_minutes)

    found = resume.find(args.output, world) if args.resume else None
    source = BankSource(args.data, config.data, config.seed, world, world.is_main, kind.needs_classes(config))
    model: Any = build_model(config, manifest, vocab)
    started = kind.prepare(model, config)
    bank, _ = source.at(found.step if found else 0)
    check_size(bank, kind.random_negatives(config), args.data)
    config.batch.pairs = world.agree(batch_size(config, bank, args.output if args.resume else None))
    del bank
    asked = config.batch.accumulation
    changed = resume.keep_true_pairs(config.batch, found, world, source.whole) if found else ""
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
    checkpoints = Checkpoints(engine, args.output, world, config.log.keep_checkpoints, config.log.checkpoint_in_background)
    state = TrainState(ranks=world.size, zero_stage=stage)
    average = WeightAverage(config.optimiser, model, stage)
    if found:
        resume.load(engine, found, state, world, grouped_names(model), average)
        if changed and world.is_main:
            print(changed, flush=True)
    state.pairs, state.slots = config.batch.pairs, config.batch.accumulation * world.size
    state.accumulation = state.accumulation or asked
    augment = Augmentation(config.augment, tokenizer, world.device)
    validation = None
    if validates(config):
        validation = Validation(config.validate, model, manifest, tokenizer, world, average)
    return Parts(
        config, world, manifest, tokenizer, source, model, objective, engine, checkpoints, offline, validation, augment, average,
        state, watchdog, started, lock,
    )  # fmt: skip


def train(args: argparse.Namespace) -> int:
    """Assemble and train; the exit status: 0 at the end of the run, TO_BE_CONTINUED where it was asked to leave before."""
    run = assemble(args)
    interruption = Interruption(args.output, run.world, args.time_limit)
    try:
        return loop(run, args.output, interruption)
    finally:
        interruption.close()
        run.watchdog.close()


def loop(run: Parts, output: Path, interruption: Interruption) -> int:
    config, world, state, source, model = run.config, run.world, run.state, run.source, run.model
    batch, log, steps, start = config.batch, config.log, config.optimiser.steps, run.state.step
    # matching pairs of one optimiser step: of a micro-batch x micro-batches of a rank x ranks
    true_pairs = batch.pairs * batch.accumulation * world.size
    all_captions = run.manifest.splits[config.data.split]["captions"]  # one epoch, in pairs
    card = partial(card_of, config, run.manifest, model.config.model_type, true_pairs)

    def write_export(name: str, *told: Any) -> None:
        weights = run.average.weights()
        export(model, run.tokenizer, output / name, run.heads, world, state.zero_stage, partial(card, *told), weights)

    guard = StepGuard(run.engine, output, world, config.safety.skip_steps)
    monitor = Monitor(output, world, steps, start, config.recipe)
    monitor.settings(flat(as_dict(config)))
    bank, checked = source.at(start)
    monitor.say("\n".join([introduction(run, bank), *run.objective.advice(config)]))

    model.train()
    for step in range(start, start if state.stopped else steps):
        run.watchdog.at(f"the data of step {step}", long=True)
        del bank  # the source must hold the only reference: it frees the old window before it loads the next
        bank, window = source.at(step)
        if window != checked:
            checked = window
            check_size(bank, run.objective.random_negatives(config), str(run.manifest.folder))
        candidates = run.offline.at(step, bank) if run.offline is not None else None
        lr = learning_rate(step, config.optimiser)
        for group in run.engine.optimizer.param_groups:
            group["lr"], group["eps"] = lr, adam_eps(step, config.optimiser)

        for micro in range(batch.accumulation):
            run.watchdog.at(f"step {step}, micro-batch {micro}, forward")
            draw = Draw(config.seed, step, world.rank * batch.accumulation + micro)
            captions = source.positives(draw, batch.pairs, run.slots)
            torch.manual_seed(seed_of(config.seed, step, draw.slot, "dropout"))
            result = run.engine(run.augment(bank, draw), captions, draw, candidates)
            run.watchdog.at(f"step {step}, micro-batch {micro}, backward")
            run.engine.backward(guard.loss(result.total, captions))
            guard.step()
            monitor.add(result, len(captions))

        # the step is done: what is written and decided from here on sees the new weights
        run.watchdog.at(f"the end of step {step}", long=True)
        leave, bad, writing = world.any_of([interruption.wanted(), guard.bad_loss, run.checkpoints.writing])
        state.step = done = step + 1
        state.true_pairs += true_pairs
        run.average.step(done)
        if said := guard.note(bad, bank, state):
            monitor.say(said)
        if done % log.every == 0 or done == steps:
            extra = {"lr": lr, "gradient_norm": gradient_norm(run.engine, guard), "epoch": done * true_pairs / all_captions}
            monitor.log(done, {**extra, "skipped_steps": state.skipped, **waits(run)})
            give_back_large_holes()
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
                    write_export("export-best", done, best)
            monitor.validated(done, figures, keep, f"{state.best:.1f} at {state.best_step}")
        if done in log.export_at and done < steps:
            average_buffers(model, world)
            write_export(f"export-step{done}", done)
        ending = done == steps or state.stopped
        if run.checkpoints.pending and not writing:
            settle(run)
        if (log.checkpoint_every and done % log.checkpoint_every == 0) or ending or leave:
            average_buffers(model, world)
            settle(run)
            run.checkpoints.begin(state, run.average)
        if ending or leave:
            settle(run)
        monitor.step_done(done)
        if leave and not ending:
            monitor.close()
            return say_goodbye(run, output, interruption)
        if ending:
            break

    if run.objective.keeps_examples and (start < state.step or not (output / "examples.json").is_file()):
        written = examples_of_dev(run)
        if world.is_main:
            write_json(output / "examples.json", {"scores": monitor.recent, "negatives": written})
    # last of all: a run with an export is a finished run
    write_export("export", state.step)
    monitor.close()
    if world.is_main:
        print(f"{config.recipe}: {state.ending()}; Hugging Face folder in {output / 'export'}")
    return 0


def settle(run: Parts) -> None:
    """Finish the checkpoint that is being written, if there is one, and drop candidates that no checkpoint needs any more."""
    oldest = run.checkpoints.settle()
    if oldest is not None and run.offline is not None:
        run.offline.forget(oldest)


def waits(run: Parts) -> dict[str, float]:
    """Seconds since the start that the loop has waited, on this rank: for windows of the corpus, and for copies of the state."""
    return {"speed/waited_for_data_s": run.source.waited_s, "speed/waited_for_checkpoints_s": run.checkpoints.waited_s}


def say_goodbye(run: Parts, output: Path, interruption: Interruption) -> int:
    """The run leaves before its end; UserError where the checkpoint could not be written."""
    why = next((why for why in run.world.gather_objects(interruption.why) if why), "")
    if run.checkpoints.failed:
        raise UserError(f"{why}, and the checkpoint of step {run.state.step} could not be written ({run.checkpoints.failed}).")
    if run.world.is_main:
        print(f"{why}: saved after step {run.state.step} of {run.config.optimiser.steps} in {output}; --resume goes on", flush=True)
    return TO_BE_CONTINUED


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
        + (f"\n{run.model.kernels(world.device)}" if hasattr(run.model, "kernels") else "")
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


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    def run() -> None:
        if args.estimate:
            estimate(args)
        elif status := train(args):
            sys.exit(status)

    command(run)()


program = partial(end_process, main)

if __name__ == "__main__":
    program()
