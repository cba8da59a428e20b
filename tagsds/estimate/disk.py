"""Disk of a run, in bytes. P, Q, w as in memory.py."""

from __future__ import annotations

from typing import Any

from tagsds.config import RunConfig
from tagsds.engine.ds_config import zero_stage
from tagsds.estimate.corpus import Corpus
from tagsds.estimate.memory import Parameters, weight_bytes
from tagsds.estimate.parts import Part

CAPTIONS_KEPT, IMAGES_KEPT = 2000, 400  # tagsds-mine's defaults


def checkpoint_bytes(parameters: Parameters, ds: dict[str, Any]) -> float:
    """One checkpoint of all ranks together: w (P + Q) for the module, 8 P for Adam, and 4 P for the master weights where there
    are any (not at stage 0 in fp32). ZeRO divides these among the ranks' files; their sum stays."""
    w = weight_bytes(ds)
    master = 4 if zero_stage(ds) or w == 2 else 0
    return w * (parameters.trained + parameters.frozen) + (8 + master) * parameters.trained


def disk_parts(config: RunConfig, corpus: Corpus, parameters: Parameters, ds: dict[str, Any], candidates: bool) -> list[Part]:
    """Shards as the manifest counts them; the cache's tables; checkpoints: the kept ones, and one more while it is written; exports
    in fp32; candidates int32 [I, 2000] and [C, 400], and as many again for each set that re-mining keeps."""
    log, steps = config.log, config.optimiser.steps
    written = steps // log.checkpoint_every if log.checkpoint_every else 0
    kept = max(1, min(log.keep_checkpoints or written, written))
    export = 4 * (parameters.trained + parameters.frozen)
    exports = 1 + len(log.export_at) + bool(config.validate.every)
    parts = [
        Part("shards of the split", sum(corpus.shard_bytes)),
        Part("cache of their tables", corpus.table_bytes if config.data.cache != "none" else 0),
        Part(f"checkpoints: {kept} kept, one in the making", (kept + 1) * checkpoint_bytes(parameters, ds)),
        Part(f"exports in fp32: {exports}", exports * export),
    ]
    if candidates:
        table = 4 * (corpus.images * min(CAPTIONS_KEPT, corpus.captions) + corpus.captions * min(IMAGES_KEPT, corpus.images))
        every = config.offline.remine_every
        sets = 1 + (min(steps // every, 2 + kept * (log.checkpoint_every or steps) // every) if every else 0)
        parts.append(Part(f"offline candidates: {sets} set(s)", sets * table))
    return parts
