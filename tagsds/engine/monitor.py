"""What people watch: TensorBoard, log.jsonl, progress bar. Rank 0 writes; sums come from all ranks."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from tagsds.objectives.output import StepOutput
from tagsds.ranks import World

SCORES_KEPT = 2000  # of each kind, for the report's distributions
ESTIMATE_AFTER = 10  # steps of this start; the first one, which compiles and fills caches, is not counted
LAYOUT = {
    "what matters first": {
        "validation, sum of recalls": ["Multiline", ["validate/recalls/rsum"]],
        "loss": ["Multiline", ["loss/total"]],
        "true pair above its negatives": ["Multiline", ["rank/.*"]],
    }
}  # TensorBoard's tab "custom scalars"


class Monitor:
    """Collects reports of micro-batches; `log` reduces and writes what came since the last call. The event files lie in the run's
    folder itself, so that `tensorboard --logdir runs` shows the run by its name."""

    def __init__(self, output: Path, world: World, steps: int, start: int, description: str) -> None:
        self.world, self.steps, self.start = world, steps, start
        self.path = output / "log.jsonl"
        self.bar = tqdm(total=steps, initial=start, desc=description, unit="step", disable=not world.is_main)
        self.writer = None
        if world.is_main:
            from torch.utils.tensorboard import SummaryWriter

            _drop_rows_after(self.path, start)
            self.writer = SummaryWriter(str(output), purge_step=start + 1)
            self.writer.add_custom_scalars(LAYOUT)
        self.recent: dict[str, list[float]] = {}
        self.shown: dict[str, str] = {}  # behind the progress bar
        self.begin = time.perf_counter()
        self.since = self.begin
        self.first_step_done = self.begin
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.scores: dict[str, list[Tensor]] = {}
        self.pairs = self.forwards = 0

    def say(self, text: str) -> None:
        """A line for people, from the first rank."""
        if self.world.is_main:
            self.bar.write(text)

    def settings(self, flat: Mapping[str, Any]) -> None:
        """The run's settings ({key with dots: value}) as hyperparameters; `SummaryWriter.add_hparams` would open another run."""
        if self.writer is not None:
            from torch.utils.tensorboard.summary import hparams

            plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in flat.items()}
            for summary in hparams(plain, {"loss/total": 0.0, "validate/recalls/rsum": 0.0}):
                self.writer._get_file_writer().add_summary(summary)

    def add(self, report: StepOutput, pairs: int) -> None:
        """One micro-batch, `pairs` true pairs. Nothing is copied from the device here."""
        one = torch.ones((), device=report.total.device)
        losses = {**report.terms, "total": report.total}
        rows = {f"loss/{name}": (term.detach().float(), one) for name, term in losses.items()}
        for name, pair in {**rows, **report.counters}.items():
            value, weight = finite_or_nothing(*pair)
            self.sums[name] = self.sums.get(name, 0) + value
            self.weights[name] = self.weights.get(name, 0) + weight
        for name, values in report.scores.items():
            self.scores.setdefault(name, []).append(values)
        self.pairs += pairs
        self.forwards += report.forwards

    def log(self, step: int, extra: dict[str, float | None]) -> dict[str, float]:
        """Write the row of `step` (a collective: all ranks call it)."""
        names = sorted(self.sums)
        flat = torch.stack([self.sums[n] for n in names] + [self.weights[n] for n in names]).to(self.world.device)
        counts = torch.tensor([self.pairs, self.forwards], dtype=torch.float32, device=self.world.device)
        flat = torch.cat([flat, counts])
        dist.all_reduce(flat)
        values = flat.tolist()
        row = {n: s / w for n, s, w in zip(names, values, values[len(names) :]) if w}
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        row["speed/true_pairs_per_s"] = values[-2] / seconds
        row["speed/pair_forwards_per_s"] = values[-1] / seconds
        row["memory/gib"] = _memory_gib()
        row.update({name: value for name, value in extra.items() if value is not None and isfinite(value)})
        if self.writer is not None:
            for name, parts in self.scores.items():
                joined = torch.cat(parts).float().cpu()
                if (joined := joined[torch.isfinite(joined)]).numel():
                    self.writer.add_histogram(f"score/{name}", joined.numpy(), step)
                    if name != "synthetic_minus_true":  # a difference, not a score
                        kept = [*self.recent.get(name, []), *joined.tolist()]
                        self.recent[name] = [round(value, 4) for value in kept[-SCORES_KEPT:]]
        self._write(step, row)
        self._show(loss=f"{row.get('loss/total', nan):.4f}", pairs_s=f"{row['speed/true_pairs_per_s']:.1f}")
        self._reset()
        return row

    def validated(self, step: int, figures: Mapping[str, float], keep: str, best: str) -> None:
        """Write the row of a validation after `step`; its time does not count as the steps'. `best`: the best so far, in words."""
        self.since += figures["seconds"]
        self.first_step_done += figures["seconds"]
        row = {f"validate/{name}": value for name, value in figures.items() if name != "seconds"}
        self._write(step, {**row, "speed/validation_s": figures["seconds"]})
        self._show(**{keep.rsplit("/", 1)[-1]: f"{figures[keep]:.1f}", "best": best})

    def step_done(self, step: int) -> None:
        """Move the bar; once, say how long the run will take."""
        self.bar.update()
        here, now = step - self.start, time.perf_counter()
        if here == 1:
            self.first_step_done = now
        if here == ESTIMATE_AFTER and step < self.steps:
            seconds = (now - self.first_step_done) / (here - 1)
            left = seconds * (self.steps - step)
            self.say(f"{seconds:.2f} s a step: about {left / 60:.0f} minutes for the other {self.steps - step} steps")

    def text(self, name: str, markdown: str, step: int) -> None:
        if self.writer is not None:
            self.writer.add_text(name, markdown, step)

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)
            with self.path.open("a") as file:
                seconds = round(time.perf_counter() - self.begin, 2)
                file.write(json.dumps({"step": step, "time_s": seconds, **row}) + "\n")

    def _show(self, **entries: str) -> None:
        self.shown |= entries
        self.bar.set_postfix(self.shown)


def finite_or_nothing(value: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(value, weight) for a mean; (0, 0) where the value is not finite, which is a step that is left out."""
    finite = torch.isfinite(value)
    return torch.where(finite, value, 0.0), weight * finite


def _drop_rows_after(path: Path, step: int) -> None:
    """A resumed run repeats the steps after its checkpoint: forget their rows, and a last one that a kill cut short."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def _memory_gib() -> float:
    """Peak on the GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
