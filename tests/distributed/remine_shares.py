"""Re-mining by the encoder under ZeRO-3, as one rank of several: the words of the command line are data folder, candidates,
output folder, DeepSpeed file and pairs of a scorer call."""

from __future__ import annotations

import sys
from pathlib import Path

from tagsds.config import load_config
from tagsds.data.source import BankSource
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.engine.build import build_engine, build_optimiser, init_distributed, lockstep_of
from tagsds.engine.ds_config import read_ds_config, zero_stage
from tagsds.engine.offline import OfflineSource
from tagsds.formats.manifest import read_manifest
from tagsds.negatives import remine
from tagsds.objectives import RetrievalObjective
from tagsds.scoring.scorer import Scorer
from tests.small_world import model_of

data, candidates, output, ds_file, pairs_a_call = sys.argv[1:6]
remine.PAIRS_A_CALL = int(pairs_a_call)
world = init_distributed()
manifest = read_manifest(data)
config = load_config(
    "published-base",
    [f"offline.candidates={candidates}", "offline.first=0", "offline.last=4", "offline.pool=5", "offline.remine_every=3",
     "quintuplet.kind=adaptive"],
)  # fmt: skip
vocab = Vocabulary.of(load_tokenizer(manifest.folder / "tokenizer"))
source = BankSource(data, config.data, config.seed, world)
model = model_of(manifest)
ds = read_ds_config(ds_file, config, world.size, False)
scorer = Scorer(model, lockstep=lockstep_of(zero_stage(ds), world))
offline = OfflineSource(config, manifest, source, model, scorer, Path(output), world, zero_stage(ds))
objective = RetrievalObjective(model, config, vocab, scorer)
build_engine(objective, build_optimiser(model, config.optimiser, ds), ds)
bank, _ = source.at(3)
offline.at(3, bank)
print("re-mined")
