"""Arithmetic of corpora up to 100 million images, by the formulas of tagsds/estimate: docs/results/scale.md.

    python -m tests.bench.scale docs/results/scale.md

A test holds the page against this file. Nothing in it is measured but the rates that it names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tagsds.config import load_config
from tagsds.estimate.corpus import Corpus
from tagsds.estimate.disk import CAPTIONS_KEPT, IMAGES_KEPT, checkpoint_bytes
from tagsds.estimate.memory import Parameters
from tagsds.estimate.parts import GIB
from tagsds.estimate.work import Forward, Sizes, retrieval_work

COUNTS = (113_287, 1_000_000, 10_000_000, 100_000_000)
SHARD, REGIONS, PIECES, PER_IMAGE = 500, 36, 13.0, 5  # images a shard; COCO-like images and captions
MAX_GIB, RANKS, NODE = 64.0, 32, 8
GPU, DISK = 100e12, 2e9  # assumed: FLOP a second that a step reaches on a GPU (bf16); bytes a second that a node reads
MINED = 1e7  # pairs a second of one CPU thread at width 1024, both directions counted (README)
WIDTH, PROBES, RERANKED = 1024, 64, 64
BASE = Sizes(layers=12, hidden=768, intermediate=3072, heads=12, vocabulary=28996)
WEIGHTS = Parameters(trained=110_000_000, frozen=3_000_000, largest=22_300_000)
ENTRY = {"file": "train-000000.tar", "samples": 500, "captions": 2500, "regions": 18000, "bytes": 75_793_000, "sha256": "0" * 64}


@dataclass(frozen=True)
class Scale:
    """A corpus of so many images."""

    images: int

    @property
    def shards(self) -> int:
        return -(-self.images // SHARD)

    @property
    def shard_bytes(self) -> float:
        """Features, boxes, a tar header and padding for each of three members (4 x 512 + 256), 250 bytes of JSON a caption."""
        return SHARD * (REGIONS * (2 * 2048 + 16) + 2304 + PER_IMAGE * 250)

    @property
    def captions(self) -> int:
        return PER_IMAGE * self.images

    @property
    def corpus(self) -> Corpus:
        sizes = (int(self.shard_bytes),) * self.shards
        return Corpus(self.images, self.captions, REGIONS * self.images, PIECES, 60, REGIONS, 2.0, 2048, 0, sizes)

    @property
    def per_window(self) -> int:
        """Shards of a window (BankSource)."""
        return min(self.shards, int(MAX_GIB * GIB / self.shard_bytes))

    @property
    def windowed(self) -> bool:
        return self.per_window < self.shards

    @property
    def steps(self) -> float:
        """An epoch of captions, 8 pairs x 4 micro-batches x 8 GPUs."""
        return self.captions / 256

    def exact_pairs(self) -> float:
        """Both directions."""
        return 2.0 * self.images * self.captions

    def index_flop(self) -> float:
        """An inverted index of sqrt(n) lists on each side (IVF; Johnson et al. 2019, arXiv 1702.08734): a query is compared with
        the lists' centres, and with the members of PROBES lists: 2 E (sqrt(n) + PROBES sqrt(n)). Not exact."""
        sides = ((self.images, self.captions), (self.captions, self.images))
        return sum(queries * 2 * WIDTH * (1 + PROBES) * keys**0.5 for queries, keys in sides)


def size(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def long(seconds: float) -> str:
    for unit, length in (("years", 365.25 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


TAGS = load_config("tags-base-coco")


def step_flop(scale: Scale) -> float:
    return TAGS.batch.accumulation * retrieval_work(TAGS, scale.corpus).flop(scale.corpus, BASE, False)


def evaluation(scale: Scale, pairs: float) -> float:
    """FLOP of the encoder on so many pairs."""
    return Forward(pairs=pairs, keep=pairs).flop(scale.corpus, BASE)


def candidates(s: Scale) -> float:
    return 4.0 * (s.images * CAPTIONS_KEPT + s.captions * IMAGES_KEPT)


ROWS: list[tuple[str, Callable[[Scale], str]]] = [
    ("shards, and the cache's tables beside them", lambda s: f"{size(s.shards * s.shard_bytes)} + {size(s.corpus.table_bytes)}"),
    ("shards (files); images of one node's 8 windows", lambda s: f"{s.shards:,}; {min(s.images, NODE * s.per_window * SHARD):,}"),
    ("`manifest.json`", lambda s: size(s.shards * len(json.dumps(ENTRY, indent=1)))),
    ("a rank's bank at `data.max_gib` 64", lambda s: size(s.corpus.table_bytes * s.per_window / s.shards)),
    ("of that captions: pieces, spans, text, ids", lambda s: size((12 * PIECES + 92) * PER_IMAGE * s.per_window * SHARD)),
    ("windows of one rank that cover the corpus", lambda s: f"{s.shards / s.per_window:,.1f}" if s.windowed else "1, shared"),
    ("read for a window of 500 steps, a node", lambda s: f"{size(NODE * s.per_window * s.shard_bytes)}, "
     f"{long(NODE * s.per_window * s.shard_bytes / DISK)} at 2 GB/s" if s.windowed else "once"),
    ("pairs of a window that its 500 steps take", lambda s: f"{100 * 16000 / (s.per_window * SHARD * PER_IMAGE):.1f} %"
     if s.windowed else "all"),
    ("steps of an epoch, tokens of its true pairs", lambda s: f"{s.steps:,.0f}, {s.captions * s.corpus.tokens:.3g}"),
    ("operations of TAGS: an epoch on 8 GPUs at 100 TFLOP/s", lambda s: long(s.steps * step_flop(s) / GPU)),
    ("sampler: a permutation of all captions, int64", lambda s: size(8 * s.captions) if not s.windowed else
     f"{size(8 * s.per_window * SHARD * PER_IMAGE)} (a window's)"),
    ("mining: vectors on disk, width 1024", lambda s: size(4 * WIDTH * (s.images + s.captions))),
    ("exact mining: pairs, one CPU thread at 1e7 pairs/s", lambda s: f"{s.exact_pairs():.3g}, {long(s.exact_pairs() / MINED)}"),
    ("exact mining on 8 GPUs at 20 TFLOP/s in fp32", lambda s: long(s.exact_pairs() * 2 * WIDTH / 8 / 20e12)),
    ("the same by an inverted index, 64 probes (not built)", lambda s: long(s.index_flop() / 8 / 20e12)),
    ("vectors read in two passes: blocks of 4,096 against all", lambda s: size(2 * s.images / 4096 * s.captions * 4 * WIDTH)),
    ("candidates, 2,000 an image and 400 a caption", lambda s: size(candidates(s))),
    ("re-mining: what rank 0 gathers, twice (parts and their stack)", lambda s: size(2 * candidates(s))),
    ("checkpoint, at 2 GB/s", lambda s: f"{size(checkpoint_bytes(WEIGHTS, {'bf16': {'enabled': True}}))}, "
     f"{long(checkpoint_bytes(WEIGHTS, {'bf16': {'enabled': True}}) / DISK)}"),
    ("a test split of so many images: score matrix", lambda s: size(4.0 * s.images * s.captions)),
    ("  exact pairs by the encoder, 8 GPUs", lambda s: long(evaluation(s, float(s.images) * s.captions) / 8 / GPU)),
    ("  rerank of the first 64 each way", lambda s: long(evaluation(s, RERANKED * (s.images + s.captions)) / 8 / GPU)),
]  # fmt: skip


def page() -> str:
    scales = [Scale(count) for count in COUNTS]
    head = "| images | " + " | ".join(f"{s.images:,}" for s in scales) + " |\n|---|" + "---|" * len(scales)
    rows = [f"| {name} | " + " | ".join(row(s) for s in scales) + " |" for name, row in ROWS]
    return TEXT.replace("{table}", "\n".join([head, *rows]))


TEXT = """# Up to 100 million images

Written by `python -m tests.bench.scale docs/results/scale.md` from the formulas of `tagsds/estimate`; a test holds this page
against them. **It is arithmetic: nothing beyond COCO's size has been run.** Assumed: 36 regions of width 2,048 an image, five
captions of 13 word pieces, shards of 500 images, 32 ranks of 8 a node, the encoder of base size, a step that reaches 100
TFLOP/s on a GPU, disks that read 2 GB/s a node. Measured elsewhere: 1e7 pairs a second of mining on a busy CPU thread
(README).

{table}

## What breaks first

**113,287 images** (COCO): nothing. A whole split is one bank of 17 GB, which a GPU of 24 GB does not hold beside a step: set
`data.max_gib`.

**1 million**, in this order:

1. *Offline candidates.* They number the whole split, which must be one bank (`check_whole`, `OfflineSource`): above
   `data.max_gib` the run ends with a sentence. AOQ's terms and `offline.replace_random` stop here; random, shared and written
   negatives go on.
2. *File descriptors.* Maps made by numpy keep one a file: a window of 80 shards met the limit of 1,024 that many systems set,
   and so did the search in the vectors of 512 shards. The cache and the search now keep none
   (`tests/data/test_many_shards.py`).
3. *Windows are read faster than they are used.* 500 steps take under one per cent of a window's pairs, and every window is
   read whole. Raise `data.window_steps`, or lower `data.max_gib`: 399 negatives need no more than some thousand images.
4. *Exact mining* takes days on one CPU thread. On 8 GPUs it takes minutes of operations, but every caption's vector is read anew
   for each block of 4,096 images, from the page cache if the machine has the memory (`tagsds-mine --block-queries` trades memory
   for it). One pass keeps 400 images of each caption in memory (4.5 GiB a million captions on a CPU, two thirds of it on a GPU):
   above `--tops-gib` each direction is searched by itself, with twice the operations.
5. *Exact evaluation*, if the test split grew likewise: above `--score-table-gib` the scores lie in files, which grow with images
   times captions. Shortlist and rerank saves the encoder's pairs, but its matcher makes the same matrix in memory.

**10 million**:

1. *Vectors read by exact mining* exceed what disks give: an index is needed, which is not built here.
2. *Candidates on disk*: `Candidates.read` computes the sha256 of both tables in every rank at every start.
3. *Re-mining* gathers all rows on the first rank's device and stacks them (`World.gather`).
4. *An epoch* of TAGS takes more than a week on 8 GPUs; the published 5,000 steps see 1.28 million pairs, whatever the corpus.

**100 million**:

1. *Disk*: shards, and a cache as large again (`data.cache=none` saves it, and tokenises each window when it is read).
2. *Lookups*: the cache hashed the list of the whole split for each shard of a window (65 ms each at 100,000 shards), and a
   window drew a permutation of all shards for each of its own. Both are done once now. Each process parses the manifest (0.4
   to 1 s).
3. *Files*: 200,000 shards in one folder, and 14 files of the cache for each: inodes, and a `glob` of the cache's folder at
   each build.
4. *Mapped areas*: a process may have 65,530 (`vm.max_map_count`), so a window may have about 4,600 shards; at 64 GiB it has
   900.
5. *int32*: candidates number captions and images; 500 million captions fit. From 2,147,483,648 on, `tagsds-mine` refuses: the
   numbers would have turned negative, which stands for "none". Offsets of tokens, regions and strings are int64 everywhere;
   `cu_seqlens` of the flash kernels are int32, over the tokens of one forward.

What does not grow with the corpus: a step's memory beyond the bank, checkpoints, exports, validation on the first dev images,
the draws of negatives (from the window), resuming.
"""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
