"""`tagsds-train --estimate`: the arithmetic of a run, printed; exit status 2 where it does not fit."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from tagsds.config import RunConfig, load_config
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.engine.ds_config import offloads, read_ds_config, zero_stage
from tagsds.errors import UserError
from tagsds.estimate.corpus import Corpus, read_corpus
from tagsds.estimate.disk import disk_parts
from tagsds.estimate.matchers import matcher_flop, matcher_parts, matcher_work
from tagsds.estimate.memory import (
    PROCESS,
    Encoder,
    Machine,
    Parameters,
    bank_parts,
    encoder_parts,
    state_parts,
    weight_bytes,
)
from tagsds.estimate.parts import GIB, Part, gib, total
from tagsds.estimate.rate import measured_rate
from tagsds.estimate.teachers import read_teachers, teacher_flop, teacher_parts
from tagsds.estimate.work import Sizes, pretrain_work, retrieval_work
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.models.load import check_data, find_checkpoint, read_config
from tagsds.objectives import OBJECTIVES
from tagsds.prepare import build_model


@dataclass
class Estimate:
    """All parts of an estimate. `flop`: of one micro-batch of one rank."""

    config: RunConfig
    corpus: Corpus
    ds: dict[str, Any]
    machine: Machine
    parameters: Parameters
    memory: list[Part]
    disk: list[Part]
    flop: float
    hidden: int

    @property
    def flop_of_run(self) -> float:
        """Of one rank: steps x micro-batches."""
        return self.flop * self.config.batch.accumulation * self.config.optimiser.steps


def model_without_weights(config: RunConfig, manifest: Manifest, vocab: Vocabulary) -> Any:
    """The run's model on the meta device: shapes alone. With `init`, by the checkpoint's config."""
    with torch.device("meta"):
        if not config.init:
            return build_model(config, manifest, vocab)
        folder, _ = find_checkpoint(Path(config.init))
        found = read_config(folder)
        check_data(found, folder, manifest)
        return AutoModel.from_config(found)


def compute(config: RunConfig, manifest: Manifest, ds_file: Path | str, machine: Machine) -> Estimate:
    """The estimate of a run. `config.batch.pairs` is set where batch.tokens decides it."""
    kind = OBJECTIVES[config.objective]
    vocab = Vocabulary.of(load_tokenizer(manifest.folder / "tokenizer"))
    corpus = read_corpus(manifest, config, vocab, kind.needs_classes(config))
    if config.batch.tokens:
        config.batch.pairs = max(1, int(config.batch.tokens / corpus.tokens))
    ds = read_ds_config(ds_file, config, machine.ranks, machine.device == "cuda")
    model = model_without_weights(config, manifest, vocab)
    kind.prepare(model, config)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    parameters = Parameters(sum(n for n, on in counts if on), sum(n for n, on in counts if not on), largest)
    memory = state_parts(parameters, ds, machine, config.batch.activation_checkpointing)
    w = weight_bytes(ds)
    if kind.trains == "encoder":
        sizes = Sizes.of(model.config)
        work = (retrieval_work if kind.ranks else pretrain_work)(config, corpus)
        recomputed = config.batch.activation_checkpointing
        encoder = Encoder(sizes, w, config.model.dropout, machine.device, recomputed)
        memory += encoder_parts(work, corpus, encoder)
        teachers = read_teachers(config.distil.teachers)
        memory += teacher_parts(teachers, work.taught, corpus, machine.device)
        flop = work.flop(corpus, sizes, recomputed) + teacher_flop(teachers, work.taught, corpus)
        hidden = sizes.hidden
    else:
        pairwise = matcher_work(config, model)
        memory += matcher_parts(pairwise, config, corpus, w, model.config.vocab_size)
        flop, hidden = matcher_flop(pairwise, config, corpus, model.config.vocab_size), pairwise.embed
    memory += [*bank_parts(config, corpus, machine), Part("Python, torch, DeepSpeed", PROCESS, "host")]
    if config.optimiser.average:
        memory.append(Part("running mean of the weights", 4 * (parameters.trained + parameters.frozen), "host"))
    disk = disk_parts(config, corpus, parameters, ds, kind.needs_candidates(config))
    return Estimate(config, corpus, ds, machine, parameters, memory, disk, flop, hidden)


def lines(found: Estimate, flop_a_second: float, source: str) -> list[str]:
    """The report. On a CPU, device and host are one memory."""
    config, corpus, machine, batch = found.config, found.corpus, found.machine, found.config.batch
    pairs = batch.pairs * batch.accumulation * machine.ranks
    out = [
        f"{config.recipe}: {found.parameters.trained:,} trained and {found.parameters.frozen:,} frozen parameters; {machine.ranks} "
        f"rank(s) on {machine.device}, ZeRO {zero_stage(found.ds)}{', offloaded' if offloads(found.ds) else ''}, "
        f"{weight_bytes(found.ds)} bytes a weight" + ("; layers recomputed" if batch.activation_checkpointing else ""),
        f"{corpus.images:,} images of {corpus.regions_of_image:.1f} regions, {corpus.captions:,} captions of {corpus.pieces:.1f} "
        f"word pieces; {batch.pairs} pairs x {batch.accumulation} x {machine.ranks} = {pairs} true pairs a step",
    ]
    for where, title in (("device", f"memory of a rank on the {machine.device}"), ("host", "memory of a rank on the host"),
                         ("node", "of the machine's ranks together")):  # fmt: skip
        parts = [part for part in found.memory if part.where == where]
        if parts:
            most, phase = total(parts, where)
            rows = [(f"{p.name}" + (f" ({p.at})" if p.at not in ("always", "cache") else ""), p.bytes) for p in parts]
            out += ["", f"{title}: {gib(most)}" + (f" at most, in {phase}" if phase not in ("always", "cache") else "")]
            out += [f"  {name:<68}{gib(size):>14}" for name, size in rows]
    out += ["", f"disk: {gib(sum(part.bytes for part in found.disk))}", *(f"  {p.name:<68}{gib(p.bytes):>14}" for p in found.disk)]
    steps = config.optimiser.steps
    hours = found.flop_of_run / flop_a_second / 3600
    epochs = pairs * steps / corpus.captions
    out += [
        "",
        f"time: {steps:,} steps = {epochs:,.1f} epochs; {found.flop * batch.accumulation:.3g} FLOP a step and rank / "
        f"{flop_a_second / 1e12:.3g} TFLOP/s ({source}) = {hours * 3600 / steps:.3g} s a step, {hours:,.2f} hours of operations",
        "(too much: all refills count as scored, though filters drop some; too little: a step does not reach this rate, and waits)",
    ]
    return out


def misfit(found: Estimate, limit_gib: float) -> str | None:
    """One sentence, where the device's memory does not hold the run."""
    most, phase = total(found.memory, "device")
    if most <= limit_gib * GIB:
        return None
    held = [part for part in found.memory if part.where == "device" and part.at in ("always", phase)]
    largest = max(held, key=lambda part: part.bytes)
    return (
        f"{found.config.recipe} needs {gib(most)} of a rank's memory and --gpu-gib={limit_gib:g} is given; the largest part is "
        f"{largest.name} ({gib(largest.bytes)}): take {largest.remedy}."
    )


def estimate(args: argparse.Namespace) -> None:
    """Print the estimate of what the command line describes; UserError where it cannot fit or cannot run."""
    for name in ("ranks", "gpu_gib", "tflops"):
        if (value := getattr(args, name)) is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a number above zero.")
    config = load_config(args.recipe, args.overrides)
    device = "cuda" if args.gpu_gib or torch.cuda.is_available() else "cpu"
    machine = Machine(device, args.ranks, min(args.ranks, 8))
    found = compute(config, read_manifest(args.data), args.deepspeed_config, machine)
    if args.tflops:
        rate, source = args.tflops * 1e12, "--tflops"
    else:
        rate, source = measured_rate(weight_bytes(found.ds), found.hidden), "a matrix product here, now"
    print("\n".join(lines(found, rate, source)))
    if args.gpu_gib and (sentence := misfit(found, args.gpu_gib)):
        raise UserError(sentence)
