"""The checks before a run: a checkpoint of another width, captions too long for the model, resuming with other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tagsds.config import as_dict, load_config, save_config
from tagsds.data.shards import Manifest, read_manifest
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.engine.build import describe_process
from tagsds.errors import UserError
from tagsds.prepare import batch_size, build_model, different_settings

SIZES = ["model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=64"]


def corpus_of(world: Path) -> tuple[Manifest, Vocabulary]:
    return read_manifest(world), Vocabulary.of(load_tokenizer(world / "tokenizer"))


@pytest.fixture
def checkpoint(world: Path, tmp_path: Path) -> Path:
    model = build_model(load_config("published-base", SIZES), *corpus_of(world))
    model.config.trained_heads = ["rank"]
    model.save_pretrained(tmp_path / "export")
    load_tokenizer(world / "tokenizer").save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def test_sizes_come_from_the_checkpoint_where_the_recipe_leaves_them_open(world: Path, checkpoint: Path) -> None:
    config = load_config("world-baseline", [f"init={checkpoint}"])
    model = build_model(config, *corpus_of(world))
    assert (config.model.hidden_size, config.model.num_hidden_layers) == (32, 2)
    assert model.config.hidden_size == 32


def test_a_checkpoint_of_another_size_than_the_recipe(world: Path, checkpoint: Path) -> None:
    config = load_config("tags-large-coco", [f"init={checkpoint}"])
    with pytest.raises(UserError, match=r"another width.*hidden_size 32, the recipe tags-large-coco wants 1024"):
        build_model(config, *corpus_of(world))


def test_a_checkpoint_of_another_region_width(world: Path, checkpoint: Path) -> None:
    manifest, vocab = corpus_of(world)
    config = load_config("world-baseline", [f"init={checkpoint}"])
    with pytest.raises(UserError, match=r"another width.*region_dim 192.*feature_dim 2048"):
        build_model(config, replace(manifest, feature_dim=2048), vocab)


def test_a_checkpoint_of_another_detector_s_classes(world: Path, checkpoint: Path) -> None:
    """They matter to a task that predicts them, and to no other."""
    manifest, vocab = corpus_of(world)
    other = replace(manifest, num_classes=1601)
    with pytest.raises(UserError, match=r"num_region_classes 64 and the shards in .* 1601 classes; set pretrain.mix.mrckl=0"):
        build_model(load_config("published-pretrain-base", [*SIZES, f"init={checkpoint}"]), other, vocab)
    build_model(load_config("world-baseline", [f"init={checkpoint}"]), other, vocab)


def test_captions_longer_than_the_model(world: Path) -> None:
    manifest, vocab = corpus_of(world)
    with pytest.raises(UserError, match="600 word pieces and the model 512"):
        build_model(load_config("published-base", SIZES), replace(manifest, max_caption_pieces=600), vocab)


def test_only_settings_that_touch_numbers_count_on_resume(tmp_path: Path) -> None:
    save_config(load_config("tags-base-coco", ["seed=7", "log.every=3", "init=here"]), tmp_path / "config.yaml")
    same = load_config("tags-base-coco", ["seed=7", "log.every=50", "init=there"])
    assert different_settings(tmp_path / "config.yaml", same) == []
    other = load_config("tags-base-coco", ["seed=8", "optimiser.lr=1e-3"])
    assert different_settings(tmp_path / "config.yaml", other) == ["optimiser.lr", "seed"]


def test_a_run_saved_before_a_key_was_there_had_its_default(tmp_path: Path) -> None:
    saved = OmegaConf.create(as_dict(load_config("tags-base-coco", ["seed=7"])))
    del saved["offline"], saved["quintuplet"], saved["optimiser"]["decay_at"]
    OmegaConf.save(saved, tmp_path / "config.yaml")
    assert different_settings(tmp_path / "config.yaml", load_config("tags-base-coco", ["seed=7"])) == []
    other = load_config("tags-base-coco", ["seed=7", "optimiser.decay_at=[100]", "offline.pool=9", "offline.first=0"])
    assert different_settings(tmp_path / "config.yaml", other) == ["offline.pool", "optimiser.decay_at"]


def test_what_was_asked_for_is_compared_on_resume(tmp_path: Path) -> None:
    """The pairs of a micro-batch follow from batch.tokens, where that is given."""
    started = load_config("tags-base-coco", ["batch.tokens=4000"])
    started.batch.pairs = 57  # computed at the start
    save_config(started, tmp_path / "config.yaml")
    again = load_config("tags-base-coco", ["batch.tokens=4000"])
    assert different_settings(tmp_path / "config.yaml", again) == []
    assert batch_size(again, None, tmp_path) == 57
    assert different_settings(tmp_path / "config.yaml", load_config("tags-base-coco", ["batch.tokens=4001"])) == ["batch.tokens"]
    changed = different_settings(tmp_path / "config.yaml", load_config("tags-base-coco", ["batch.tokens=0", "batch.pairs=9"]))
    assert changed == ["batch.pairs", "batch.tokens"]
    assert batch_size(load_config("tags-base-coco", ["batch.pairs=9", "batch.tokens=0"]), None, tmp_path) == 9


def test_processes_of_srun_find_each_other() -> None:
    env = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    describe_process(env)
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == ("3", "1", "4")
    alone: dict[str, str] = {}
    describe_process(alone)
    assert (alone["RANK"], alone["WORLD_SIZE"], alone["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    with pytest.raises(UserError, match="4 tasks without MASTER_ADDR"):
        describe_process({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"})
