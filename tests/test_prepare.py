"""The checks before a run: a checkpoint of another width, captions too long for the model, resuming with other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tagsds.config import as_dict, load_config, save_config
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.errors import UserError
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.models.matchers import VSRN
from tagsds.prepare import batch_size, build_model, different_settings, prepare_output
from tagsds.ranks import World, describe_process

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
    settings = load_config("published-base", SIZES)

    def with_longest(**pieces: int) -> Manifest:
        splits = {name: {**part, "max_caption_pieces": pieces.get(name, 12)} for name, part in manifest.splits.items()}
        return replace(manifest, splits=splits, max_caption_pieces=max(12, *pieces.values()))

    with pytest.raises(UserError, match=r"of split 'train' has 600 word .* model 512 .* --max-caption-pieces train=512 --long"):
        build_model(settings, with_longest(train=600), vocab)
    build_model(settings, with_longest(test=600), vocab)  # training does not read the test captions


def test_older_manifests_know_the_longest_caption_of_the_corpus_alone(world: Path) -> None:
    manifest, vocab = corpus_of(world)
    splits = {name: {k: v for k, v in part.items() if k != "max_caption_pieces"} for name, part in manifest.splits.items()}
    older = replace(manifest, splits=splits, max_caption_pieces=600)
    assert older.caption_pieces("train") == 600
    with pytest.raises(UserError, match="600 word pieces and the model 512"):
        build_model(load_config("published-base", SIZES), older, vocab)


def test_an_output_folder_with_a_run_in_it_is_never_deleted(tmp_path: Path) -> None:
    config = load_config("tags-base-coco", ["seed=7"])
    prepare_output(tmp_path / "run", config, resume=False, world=World())
    (tmp_path / "run" / "log.jsonl").write_text("a row\n")
    with pytest.raises(UserError, match="holds a run already; add --resume to go on with it, or name another --output"):
        prepare_output(tmp_path / "run", config, resume=False, world=World())
    prepare_output(tmp_path / "run", config, resume=True, world=World())
    assert (tmp_path / "run" / "log.jsonl").read_text() == "a row\n"


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
    assert changed == ["batch.tokens"], "pairs are held against the checkpoint's"
    assert batch_size(load_config("tags-base-coco", ["batch.pairs=9", "batch.tokens=0"]), None, tmp_path) == 9


def test_processes_of_srun_find_each_other() -> None:
    master = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    task = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
    env = task | master
    describe_process(env)
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == ("3", "1", "4")
    part = task | master | {"SLURM_STEP_NUM_TASKS": "6"}  # a step may have another number of tasks than its job
    describe_process(part)
    assert (part["RANK"], part["WORLD_SIZE"]) == ("3", "6")
    script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"} | master  # the batch script itself is no task
    describe_process(script)
    assert (script["RANK"], script["WORLD_SIZE"]) == ("0", "1")
    alone: dict[str, str] = {}
    describe_process(alone)
    assert (alone["RANK"], alone["WORLD_SIZE"], alone["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")
    with pytest.raises(UserError, match="4 tasks without MASTER_ADDR"):
        describe_process(task)


VSRN_SIZES = ["matcher.embed_size=8", "matcher.word_size=6", "matcher.graph_layers=1", "matcher.caption_hidden=5"]


def vsrn(world: Path, name: str, *overrides: str) -> VSRN:
    matcher = build_model(load_config(name, [*VSRN_SIZES, *overrides]), *corpus_of(world))
    assert isinstance(matcher, VSRN)
    return matcher


@pytest.mark.parametrize(
    ("name", "norms"),
    [("vsrn-coco", (True, True, False)), ("vsrn-flickr", (True, False, True)), ("coco-boxes-vsrn", (False, True, False))],
)
def test_vsrns_norms_are_the_recipes(world: Path, name: str, norms: tuple[bool, ...]) -> None:
    matcher = vsrn(world, name)
    assert (matcher.config.column_norm, matcher.config.input_norm, matcher.config.image_norm) == norms
    states = matcher.eval().encode_images(load_bank(world, "train", first=4)[0].image_table(torch.tensor([0, 1]))).states
    lengths = torch.stack([states[0].norm(dim=0), states[0].norm(dim=1)[:1].expand(8)])  # over the regions; of a region
    assert torch.allclose(lengths[0 if norms[0] else 1], torch.ones(8), atol=1e-5)


def test_dropout_and_longest_caption_are_the_recipes_also_with_init(world: Path, tmp_path: Path) -> None:
    vsrn(world, "vsrn-flickr").save_pretrained(tmp_path)
    matcher = vsrn(world, "vsrn-aoq-flickr", f"init={tmp_path}", "matcher.caption_dropout=0")
    assert (matcher.config.caption_dropout, matcher.config.caption_pieces) == (0.0, 60)
    assert matcher.captioner is not None and (matcher.captioner.dropout.p, matcher.captioner.most) == (0.0, 60)
    assert (matcher.config.image_norm, matcher.config.input_norm) == (True, False)  # the checkpoint's


def test_a_captioner_begins_where_the_checkpoint_has_none(world: Path, tmp_path: Path) -> None:
    vsrn(world, "vsrn-coco", "matcher.caption_weight=0").save_pretrained(tmp_path)
    assert vsrn(world, "vsrn-coco", f"init={tmp_path}", "matcher.caption_weight=0").captioner is None
    matcher = vsrn(world, "vsrn-coco", f"init={tmp_path}")
    assert matcher.config.caption_hidden == 5 and matcher.captioner is not None
    assert matcher.captioner.word.weight.shape == (matcher.config.vocab_size, 6)
    again = vsrn(world, "vsrn-coco", f"init={tmp_path}")
    assert again.captioner is not None
    for ours, theirs in zip(matcher.captioner.parameters(), again.captioner.parameters()):
        assert torch.equal(ours, theirs)  # all ranks begin alike
