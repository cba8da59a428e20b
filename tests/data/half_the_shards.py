"""What a rank that lacks a shard which the others have says, and what it loads with data.bad_shards=skip: a JSON list of both. For
two processes (`launch.run_two`); the argument is a folder with a corpus a rank, `rank0` and `rank1`."""

from __future__ import annotations

import json
import sys

from tagsds.data.source import BankSource, DataConfig
from tagsds.errors import UserError
from tagsds.ranks import start_world, stop_world

world = start_world()
folder = f"{sys.argv[1]}/rank{world.rank}"
said = ""
try:
    BankSource(folder, DataConfig(bad_shards="stop"), 3, world).at(0)
except UserError as error:
    said = str(error)
bank, _ = BankSource(folder, DataConfig(bad_shards="skip"), 3, world).at(0)
stop_world()
print(json.dumps([said, list(bank.keys)]))
