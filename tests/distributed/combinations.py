"""TAGS-DC under one combination of DeepSpeed's settings after another, in one process group: the words of the command line are the
data folder, a JSON with a list of jobs, and the file in which rank 0 leaves a list of what each gave.

A job is {"cell": ..., "settings": ["key=value", ...], "steps": n}, with "weights_after" a step where not the last one's
weights are wanted, "count" where memory is, "deepspeed" for further keys of the file. A cell names ZeRO stage, offload ("",
"optimizer", "both"), precision (fp32, bf16, fp16), micro-batches of a step, and activation checkpointing.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tagsds.config import load_config
from tagsds.data.source import BankSource
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw, seed_of
from tagsds.engine.build import adam_eps, build_engine, build_optimiser, init_distributed, learning_rate, lockstep_of
from tagsds.engine.ds_config import read_ds_config, zero_stage
from tagsds.engine.weights import whole_state
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tagsds.objectives import OBJECTIVES
from tagsds.prepare import build_model
from tagsds.ranks import World
from tagsds.scoring.registry import scorer_of
from tests.live_memory import LiveBytes


@dataclass(frozen=True)
class Cell:
    """One combination."""

    stage: int
    offload: str = ""
    precision: str = "fp32"
    accumulation: int = 1
    checkpointing: bool = False

    def deepspeed(self) -> dict[str, Any]:
        """The DeepSpeed file. Small buckets, so that a small model fills several; ZeRO 3 partitions every parameter."""
        zero: dict[str, Any] = {"stage": self.stage}
        if self.stage:
            zero |= {"reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000}
        if self.stage == 3:
            zero |= {"stage3_param_persistence_threshold": 0}
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        if self.offload == "both":
            zero["offload_param"] = {"device": "cpu"}
        half = {"bf16": {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}},
                "fp16": {"fp16": {"enabled": True, "initial_scale_power": 8}}}  # fmt: skip
        return {"zero_optimization": zero, **half.get(self.precision, {})}

    def settings(self) -> list[str]:
        return [f"batch.accumulation={self.accumulation}", f"batch.activation_checkpointing={self.checkpointing}".lower()]


def grid(precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")) -> list[Cell]:
    """Every combination that means something: parameters are offloaded at stage 3 alone."""
    return [
        Cell(stage, offload, precision, accumulation, checkpointing)
        for precision in precisions
        for stage in range(4)
        for offload in ("", "optimizer", *(["both"] * (stage == 3)))
        for accumulation in (1, 2)
        for checkpointing in (False, True)
    ]


def refusal(cell: Cell, folder: Path, ranks: int, on_gpu: bool) -> str:
    """The sentence with which the launcher refuses a cell, "" where it does not."""
    file = folder / "cell.json"
    file.write_text(json.dumps(cell.deepspeed()))
    try:
        read_ds_config(file, load_config("published-base", cell.settings()), ranks, on_gpu)
    except UserError as error:
        return str(error).replace(f"{file}: ", "")
    return ""


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def run(data: str, job: dict[str, Any], world: World, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The losses of all micro-batches, the weights after the last step or `weights_after`, and the memory that it took."""
    cell = Cell(**job["cell"])
    config = load_config("published-base", [*job["settings"], *cell.settings()])
    manifest = read_manifest(data)
    vocab = Vocabulary.of(load_tokenizer(manifest.folder / "tokenizer"))
    source = BankSource(data, config.data, config.seed, world, classes=False)
    bank, _ = source.at(0)
    before = resident()
    file = folder / f"rank{world.rank}.json"
    file.write_text(json.dumps(cell.deepspeed() | job.get("deepspeed", {})))
    ds = read_ds_config(file, config, world.size, world.device.type == "cuda")
    memory, losses = LiveBytes(), []
    counted = job.get("count", False)
    with memory if counted else nullcontext():
        model: Any = build_model(config, manifest, vocab)
        kind = OBJECTIVES[config.objective]
        kind.prepare(model, config)
        begun = {name: parameter.detach().clone() for name, parameter in model.named_parameters()} if not counted else {}
        objective = kind(model, config, vocab, scorer_of(model, lockstep=lockstep_of(zero_stage(ds), world)))
        engine = build_engine(objective, build_optimiser(model, config.optimiser, ds), ds)
        model.train()
        batch = config.batch
        for step in range(job["steps"]):
            memory.restart()
            for group in engine.optimizer.param_groups:
                group["lr"], group["eps"] = learning_rate(step, config.optimiser), adam_eps(step, config.optimiser)
            for micro in range(batch.accumulation):
                draw = Draw(config.seed, step, world.rank * batch.accumulation + micro)
                captions = source.positives(draw, batch.pairs, batch.accumulation * world.size)
                torch.manual_seed(seed_of(config.seed, step, draw.slot, "dropout"))
                output = engine(bank, captions, draw, None)
                losses.append(float(output.total.detach()))
                engine.backward(output.total)
                del output
                if micro + 1 == batch.accumulation:
                    memory_of_backward = memory.live
                engine.step()
            if step + 1 == job.get("weights_after", job["steps"]) and not counted:
                weights = whole_state(model, zero_stage(ds))
        gc.collect()
        rest, peak = memory.live, memory.peak
    found = {"losses": losses, "rest": rest, "before_step": memory_of_backward, "peak": peak, "resident": resident() - before,
             "trained": sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)}  # fmt: skip
    if counted:
        weights = whole_state(model, zero_stage(ds))
    engine.destroy()
    if not counted:
        found["moved"] = distance(weights, begun)
    return found, weights


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """Euclidean, over all parameters."""
    return sum(float((some[name].double() - others[name].double()).square().sum()) for name in others) ** 0.5


def main() -> None:
    data, jobs_file, output = sys.argv[1:4]
    world = init_distributed()
    reports, reference = [], {}
    for job in json.loads(Path(jobs_file).read_text()):
        cell = Cell(**job["cell"])
        report: dict[str, Any] = {"cell": asdict(cell)}
        try:
            found, weights = run(data, job, world, Path(output).parent)
            report |= found
            first = reference.setdefault((cell.precision, cell.accumulation), weights)  # the first of its kind is the reference
            report["weight_error"] = distance(weights, first)
            del weights
        except UserError as error:
            report["refused"] = str(error)
        gc.collect()
        reports.append(report)
        print(json.dumps(report), file=sys.stderr, flush=True)
    if world.is_main:
        Path(output).write_text(json.dumps(reports))


if __name__ == "__main__":
    main()
