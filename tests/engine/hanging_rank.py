"""A rank of two that hangs, is frozen or ends well: hanging_rank.py CASE. Limits of seconds in the place of minutes."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from tagsds.engine import watchdog as module
from tagsds.ranks import start_world

case, culprit = sys.argv[1].split("-")
module.DEAD_S, module.PULSE_S, module.LAST_WORDS_S = 6.0, 0.5, 2.0
world = start_world()
watchdog = module.Watchdog(world, minutes=4 / 60, long_minutes=1.0)
for step in range(3):
    watchdog.at(f"step {step}, forward")
    if case == "hang" and step == 1 and world.rank == int(culprit):
        time.sleep(300)  # a file system that no longer answers
    if case == "frozen" and step == 1 and world.rank == int(culprit):
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "slow" and step == 1:
        watchdog.at("mining", long=True)
        time.sleep(7)
    watchdog.at(f"step {step}, backward")
    dist.all_reduce(torch.ones(1))
watchdog.close()
print("done")
