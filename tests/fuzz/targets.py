"""What is damaged: each format as a tiny valid folder, and the public function by which the commands read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz.corpus_targets import (
    load_a_tokenizer,
    load_cached,
    load_candidates,
    load_corpus,
    load_edits,
    load_manifest,
    load_verified,
    load_vocabulary,
    make_cached,
    make_candidates,
    make_corpus,
    make_imported,
    make_tokenizer,
    make_vocabulary,
    reseal_candidates,
    reseal_corpus,
)
from tests.fuzz.model_targets import (
    PUBLISHED,
    load_card,
    load_export,
    load_published,
    load_way_back,
    load_words,
    make_export,
    make_matcher,
    make_older_export,
    make_published,
    make_way_back,
    make_words,
)
from tests.fuzz.run_targets import (
    load_checkpoint,
    load_deepspeed,
    load_recipe,
    load_report,
    load_settings,
    make_checkpoint,
    make_deepspeed,
    make_recipe,
    make_run,
    make_settings,
)


@dataclass(frozen=True)
class Target:
    """One format.

    make      writes a valid folder
    load      reads it as the commands do; what it returns is compared with that of the undamaged folder
    damaged   patterns of the files that are damaged
    guarded   a checksum covers these files: another value than the undamaged one is a failure
    reseal    (folder, name of the damaged file) -> None: makes the checksums agree with the damaged file, so that the content is
              looked at
    weight    how often it is chosen
    """

    name: str
    make: Callable[[Path], object]
    load: Callable[[Path], Any]
    damaged: tuple[str, ...]
    guarded: bool = False
    reseal: Callable[[Path, str], None] | None = None
    weight: int = 1


TARGETS: tuple[Target, ...] = (
    Target("manifest", make_corpus, load_manifest, ("manifest.json",), weight=4),
    Target("shards", make_corpus, load_corpus, ("*.tar",), guarded=True),
    Target("corpus's tokenizer", make_corpus, load_corpus, ("tokenizer/*",), guarded=True),
    Target("shards, checksum mended", make_corpus, load_corpus, ("*.tar",), reseal=reseal_corpus, weight=8),
    Target("shards of imported ids, checksum mended", make_imported, load_corpus, ("*.tar",), reseal=reseal_corpus, weight=4),
    Target("corpus's tokenizer, checksum mended", make_corpus, load_corpus, ("tokenizer/*",), reseal=reseal_corpus, weight=2),
    Target("tagsds-pack --verify, checksum mended", make_corpus, load_verified, ("*.tar", "manifest.json", "tokenizer/*"),
           reseal=reseal_corpus, weight=3),
    Target("cache of a corpus", make_cached, load_cached, ("cache/*/*",), guarded=True, weight=2),
    Target("tokenizer", make_tokenizer, load_a_tokenizer, ("*",), weight=3),
    Target("vocab.txt", make_vocabulary, load_vocabulary, ("vocab.txt",)),
    Target("export", make_export, load_export, ("config.json", "model.safetensors", "tokenizer*", "checksums.json"), guarded=True,
           weight=2),
    Target("export without checksums", make_older_export, load_export, ("config.json", "model.safetensors", "tokenizer*"),
           weight=5),
    Target("matcher without checksums", make_matcher, load_export, ("config.json", "model.safetensors"), weight=3),
    Target("model card", make_export, load_card, ("card.json",), weight=2),
    Target("record of the way back", make_way_back, load_way_back, ("ours/published.json",), weight=2),
    Target("published checkpoints", make_published, load_published, PUBLISHED, weight=6),
    Target("published vocabularies", make_words, load_words, ("words.*",), weight=2),
    Target("candidates", make_candidates, load_candidates, ("mined/*.npy",), guarded=True),
    Target("candidates, checksum mended", make_candidates, load_candidates, ("mined/*",), reseal=reseal_candidates, weight=3),
    Target("edits of a corpus", make_corpus, load_edits, ("edits/*/*.json",), guarded=True),
    Target("edits, checksum mended", make_corpus, load_edits, ("edits/*/*.json",), reseal=reseal_corpus, weight=2),
    Target("run in a report", make_run, load_report, ("*",), weight=4),
    Target("recipe", make_recipe, load_recipe, ("*.yaml",), weight=4),
    Target("saved settings", make_settings, load_settings, ("config.yaml",), weight=2),
    Target("DeepSpeed file", make_deepspeed, load_deepspeed, ("*.json",), weight=2),
    Target("checkpoint of a run", make_checkpoint, load_checkpoint, ("checkpoints/*/*",), guarded=True, weight=3),
)  # fmt: skip
