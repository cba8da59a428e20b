"""Where the time of one TAGS-DC step goes, and what memory it takes.

    python -m tests.bench.phases [--preset issue] [--output phases.json]

Clocks stand around the package's own functions (`PHASES`); a phase's time is what its functions spend outside other phases.
Memory is the most that the process held during the steps beyond what it held before them (model, bank and libraries): on a CPU
resident pages (VmHWM of /proc/self/status), on a GPU `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tagsds.malloc import keep_freed_memory
from tagsds.scoring.scorer import clock
from tests.bench import run
from tests.bench.operations import Call, flop_of, recorded, sizes_of
from tests.bench.variants import Variants

# phase -> functions, as (where they are looked up, name); the first phase is the whole forward
PHASES: dict[str, list[tuple[str, str]]] = {
    "losses": [("tagsds.objectives.retrieval.objective:RetrievalObjective", "forward")],
    "draw and filter": [
        ("tagsds.negatives.random", "draw_images"), ("tagsds.negatives.random", "draw_captions"),
        ("tagsds.objectives.retrieval.draws", "mask_captions"), ("tagsds.negatives.writer", "filter_candidates"),
        ("tagsds.negatives.writer", "write"), ("tagsds.negatives.writer:Written", "hardest"),
    ],
    "refill": [("tagsds.objectives.retrieval.draws", "write_negatives")],
    "score t2i and i2t": [
        ("tagsds.objectives.retrieval.draws", "mine_random"), ("tagsds.objectives.retrieval.draws", "mine_shared"),
    ],
    "score written": [("tagsds.negatives.writer", "score_sentences")],
    "forward with gradient": [("tagsds.objectives.retrieval.forward:Plan", "encode")],
}  # fmt: skip
ORDER = ["draw and filter", "score t2i and i2t", "refill", "score written", "forward with gradient", "losses", "backward"]


class Clocks:
    """Seconds of each phase, and which phase is running."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(ORDER, 0.0)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        self._charge()
        self.running.append(phase)
        try:
            yield
        finally:
            self._charge()
            self.running.pop()

    def _charge(self) -> None:
        """Give the time since the last change to the phase that ran."""
        now = clock(self.device)
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now


def watched(function: Callable[..., Any], phase: str, clocks: Clocks) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        with clocks.of(phase):
            return function(*args, **kwargs)

    return timed


@contextmanager
def clocks_around(device: torch.device) -> Iterator[Clocks]:
    """Every function of `PHASES` with its clock."""
    clocks = Clocks(device)
    with ExitStack() as stack:
        for phase, functions in PHASES.items():
            for place, name in functions:
                module, _, kind = place.partition(":")
                owner = importlib.import_module(module)
                owner = getattr(owner, kind) if kind else owner
                stack.enter_context(patch.object(owner, name, watched(getattr(owner, name), phase, clocks)))
        yield clocks


def resident(field: str) -> float:
    """MiB of this process by /proc/self/status: VmRSS now, VmHWM at most so far; zero where there is no such file."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else []:
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def forget_peak() -> None:
    """VmHWM begins anew at what is resident now, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """{'before_mib', 'peak_mib'}: what was held before, and the most that was held beyond it inside."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        found["before_mib"] = torch.cuda.memory_allocated(device) / 2**20
    else:
        forget_peak()
        found["before_mib"] = resident("VmRSS")
    yield found
    most = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else resident("VmHWM")
    found["peak_mib"] = most - found["before_mib"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Shares of time, throughput and memory of the package's step."""
    variants = Variants(args)
    device, model = variants.device, variants.model
    steps: list[dict[str, float]] = []
    with peak_memory(device) as memory:
        for _ in range(args.repeats):
            model.zero_grad(set_to_none=True)
            with clocks_around(device) as clocks, recorded(model) as calls:
                output = variants.objective(variants.bank, variants.captions, variants.draw)
                with clocks.of("backward"):
                    output.total.backward()
            steps.append(clocks.seconds)
    seconds = {phase: median(step[phase] for step in steps) for phase in ORDER}
    whole = sum(seconds.values())
    return {
        "phases": [{"phase": phase, "seconds": s, "share": s / whole} for phase, s in seconds.items()],
        "seconds": whole,
        "true_pairs_per_s": args.captions / whole,
        "pairs_per_s": output.forwards / whole,
        "tokens_per_s": tokens(calls) / whole,
        "mined_pairs_per_s": 2 * args.count * args.captions / seconds["score t2i and i2t"],
        "gflop": flop_of(calls, sizes_of(model), model.config.region_dim) / 1e9,
        **memory,
    }


def tokens(calls: list[Call]) -> float:
    return sum(call.stream.tokens for call in calls)


def show(found: dict[str, Any]) -> None:
    print(f"{'phase':26} {'s':>8} {'share':>6}")
    for row in found["phases"]:
        print(f"{row['phase']:26} {row['seconds']:8.3f} {row['share']:6.1%}")
    print(f"{'the step':26} {found['seconds']:8.3f}")
    print(
        f"{found['true_pairs_per_s']:.3g} true pairs/s, {found['pairs_per_s']:.3g} pairs/s and {found['tokens_per_s']:.3g} "
        f"tokens/s of all forwards, {found['mined_pairs_per_s']:.3g} pairs/s in mining; "
        f"{found['peak_mib']:.0f} MiB beyond the {found['before_mib']:.0f} before"
    )


def main(argv: list[str] | None = None) -> None:
    args = run.parse(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as a run does
    found = {"about": run.about(args), **measure(args)}
    show(found)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
