"""`tagsds/train.py` with a watch on its windows: at each load it prints how many earlier windows are still in memory."""

from __future__ import annotations

import weakref

import torch

from tagsds import train
from tagsds.data import source

seen: list[weakref.ref] = []
load_shards = source.load_shards


def watched(*args, **kwargs):
    alive = sum(held() is not None for held in seen)
    print(f"window {len(seen)}: {alive} alive", flush=True)
    bank = load_shards(*args, **kwargs)
    seen.append(weakref.ref(bank.regions.values))  # the features: nearly all of a window's memory
    return bank


source.load_shards = watched
# as something imported might have left it
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
train.main()
print(f"tf32: {torch.backends.cudnn.allow_tf32} {torch.backends.cuda.matmul.allow_tf32}")
