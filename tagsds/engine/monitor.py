"""What people watch: TensorBoard, log.jsonl, progress bar. Rank 0 writes; sums come from all ranks."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from tagsds.objectives.output import StepOutput
from tagsds.ranks import World

SCORES_KEPT = 2000  # of each kind, for the report's distributions


class Monitor:
    """Collects reports of micro-batches; `log` reduces and writes what came since the last call."""

    def __init__(self, output: Path, world: World, steps: int, start: int, description: str) -> None:
        self.world = world
        self.path = output / "log.jsonl"
        self.bar = tqdm(total=steps, initial=start, desc=description, unit="step", disable=not world.first)
        self.writer = None
        if world.first:
            from torch.utils.tensorboard import SummaryWriter

            _drop_rows_after(self.path, start)
            self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=start + 1)
        self.recent: dict[str, list[float]] = {}
        self.begin = time.perf_counter()
        self.since = self.begin
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self.scores: dict[str, list[Tensor]] = {}
        self.pairs = self.forwards = 0

    def add(self, report: StepOutput, pairs: int) -> None:
        """One micro-batch, `pairs` true pairs. Nothing is copied from the device here."""
        one = torch.ones((), device=report.total.device)
        rows = {f"loss/{name}": (term.detach().float(), one) for name, term in report.terms.items()}
        rows["loss/total"] = (report.total.detach().float(), one)
        for name, (value, weight) in {**rows, **report.counters}.items():
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
        row.update({name: value for name, value in extra.items() if value is not None})
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)
            for name, parts in self.scores.items():
                if (joined := torch.cat(parts).float().cpu()).numel():
                    self.writer.add_histogram(f"score/{name}", joined.numpy(), step)
                    if name != "synthetic_minus_true":  # a difference, not a score
                        kept = [*self.recent.get(name, []), *joined.tolist()]
                        self.recent[name] = [round(value, 4) for value in kept[-SCORES_KEPT:]]
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "time_s": round(now - self.begin, 2), **row}) + "\n")
            self.bar.set_postfix(loss=f"{row['loss/total']:.4f}", pairs_s=f"{row['speed/true_pairs_per_s']:.1f}")
        self._reset()
        return row

    def text(self, name: str, markdown: str, step: int) -> None:
        if self.writer is not None:
            self.writer.add_text(name, markdown, step)

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()


def _drop_rows_after(path: Path, step: int) -> None:
    """A resumed run repeats the steps after its checkpoint: forget their rows."""
    if path.is_file():
        rows = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        path.write_text("".join(rows))


def _memory_gib() -> float:
    """Peak on the GPU, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
