"""The gradient of 16 micro-batches as DeepSpeed sums it, against their exact sum: prints the relative error. The
word of the command line is a DeepSpeed file."""

from __future__ import annotations

import sys

import torch
from deepspeed.utils import safe_get_full_grad
from torch import nn

from tagsds.config import RunConfig
from tagsds.engine.build import build_engine, build_optimiser, init_distributed
from tagsds.engine.ds_config import read_ds_config

MICRO_BATCHES = 16


class Sum(nn.Module):
    """The gradient of a micro-batch is the micro-batch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4096))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.weight * batch).sum()


config = RunConfig()
config.batch.accumulation, config.optimiser.clip = MICRO_BATCHES, 0.0
world = init_distributed()
model = Sum()
ds = read_ds_config(sys.argv[1], config, world.size, False)
engine = build_engine(model, build_optimiser(model, config.optimiser, ds), ds)
batches = torch.randn(MICRO_BATCHES, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
for number, batch in enumerate(batches):
    engine.backward(engine(batch))
    if number + 1 < MICRO_BATCHES:
        engine.step()
found = safe_get_full_grad(model.weight)
exact = batches.double().mean(0)
print(float((found.double() - exact).norm() / exact.norm()))
