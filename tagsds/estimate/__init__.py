"""What a run will take, before it is started: memory of a rank, disk, hours. No process group, no training, no DeepSpeed.

    corpus.py     counts and mean lengths of the split
    work.py       pairs, tokens and operations of a micro-batch of the encoder
    matchers.py   the same of a matcher, and its memory
    memory.py     states by ZeRO stage, activations, the bank
    disk.py       shards, cache, checkpoints, exports, candidates
    rate.py       operations a second of this machine
    report.py     `tagsds-train --estimate`
"""

from tagsds.estimate.report import estimate

__all__ = ["estimate"]
