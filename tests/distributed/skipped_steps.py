"""Steps with a loss that is not finite, in every ZeRO stage: prints, for each DeepSpeed file of the command line, how far the
weights and moments lie from those of a run that was never given such a step, and what was said. For two processes
(`launch.run_two`)."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import nn

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.engine.build import build_engine, build_optimiser, init_distributed
from tagsds.engine.ds_config import read_ds_config
from tagsds.engine.guard import StepGuard
from tagsds.engine.state import TrainState
from tagsds.errors import UserError

CAPTIONS = 12
NONE = torch.empty(0)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, batch: torch.Tensor, scale: float) -> torch.Tensor:
        return self.model(batch).square().mean() * scale


def bank() -> Bank:
    one = Ragged(torch.arange(CAPTIONS), torch.ones(CAPTIONS, dtype=torch.int64))
    ids = [f"c{number}" for number in range(CAPTIONS)]
    images = [f"i{number}" for number in range(CAPTIONS)]
    return Bank(one, one, torch.arange(CAPTIONS), one, one, NONE, texts=ids, keys=images, caption_ids=ids)


def run(path: str, losses: list[float], spoilt: int | None, allowed: int = 9) -> tuple[torch.Tensor, TrainState, list[str]]:
    """Steps of two micro-batches each; in step `spoilt` the loss of rank 1's second one is multiplied by one of `losses`."""
    config = RunConfig()
    config.batch.accumulation, config.optimiser.lr = 2, 0.05
    ds = read_ds_config(path, config, world.size, False)
    objective = Small()
    engine = build_engine(objective, build_optimiser(objective.model, config.optimiser, ds), ds)
    guard, state, said = StepGuard(engine, folder, world, allowed), TrainState(), []
    for step in range(4):
        for loss in losses if step == spoilt else [1.0]:
            if spoilt == -1 and step == 2:
                continue  # never given the step that the other run has and leaves out
            for micro in range(2):
                numbers = torch.arange(3) + 3 * (2 * world.rank + micro)
                batch = torch.randn(3, 6, generator=torch.Generator().manual_seed(100 * step + 10 * world.rank + micro))
                batch = batch.to(next(objective.parameters()).dtype)
                scale = loss if (world.rank, micro) == (1, 1) else 1.0
                engine.backward(guard.loss(engine(batch, scale), numbers))
                guard.step()
            (bad,) = world.any_of([guard.bad_loss])
            if text := guard.note(bad, bank(), state):
                said.append(text)
            state.step += 1
    weights = [safe_get_full_fp32_param(p) for p in objective.parameters()]
    if weights[0] is None:
        weights = list(objective.parameters())
    return torch.cat([w.detach().float().flatten() for w in weights]), state, said


world = init_distributed()
folder = Path(tempfile.mkdtemp())
found = {}
for path in [argument for argument in sys.argv[1:] if argument.endswith(".json")]:
    plain, _, _ = run(path, [], -1)
    for loss in (float("nan"), float("inf")):
        weights, state, said = run(path, [loss], 2)
        found[f"{Path(path).stem} {loss}"] = [float((weights - plain).abs().max()), state.skipped, state.in_a_row, said]
ended = ""
try:
    run(path, [float("nan")] * 3, 2, allowed=2)
except UserError as error:
    ended = str(error)
rows = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()] if world.is_main else []
print(json.dumps({"found": found, "ended": ended, "rows": rows}))
