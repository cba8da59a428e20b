"""What the preflight refuses, and what it says of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagsds.config import family, load_config, save_config
from tagsds.errors import UserError
from tagsds.preflight import check_checkpoint, check_run, parse

SMALL = ["model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64", "model.num_hidden_layers=2",
         "negatives.keep=3"]  # fmt: skip


def check(world: Path, output: Path, *more: str, recipe: str = "world-tags", ranks: int = 2) -> list[str]:
    base = ["--recipe", recipe, "--data", str(world), "--output", str(output), "--deepspeed_config", "ds_configs/zero1.json"]
    return check_run(parse([*base, "--ranks", str(ranks), "--cpu", *SMALL, *more]))


def test_a_sound_run_is_described(world: Path, tmp_path: Path) -> None:
    lines = check(world, tmp_path / "run", "batch.pairs=4", "batch.accumulation=3")
    assert lines == [
        f"world-tags into {tmp_path / 'run'}: 24 true pairs a step on 2 rank(s), ZeRO 1, 600 steps, learning rate 0.001, "
        "from fresh weights"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ranks", "settings", "warning"),
    [
        (8, [], None),
        (16, ["batch.accumulation=4"], None),
        (16, [], "warning: 512 true pairs a step where the published run has 256 (8 GPU(s))"),
        (2, ["batch.pairs=8"], "warning: 128 true pairs a step where the published run has 256 (8 GPU(s))"),
    ],
)
def test_the_published_batch(world: Path, tmp_path: Path, ranks: int, settings: list[str], warning: str | None) -> None:
    enough = ["negatives.count=11", "validate.every=0"]
    lines = check(world, tmp_path / "run", *enough, *settings, recipe="tags-base-coco", ranks=ranks)
    assert len(lines) == (1 if warning is None else 2) and (warning is None or lines[1].startswith(warning))


def test_a_matcher_counts_on_one_gpu_and_tokens_are_counted_as_such(world: Path, tmp_path: Path) -> None:
    assert family("vsrn-aoq-flickr")[0] == "published-matcher" and family("world-tagsdc") == ["world-baseline", "world-tagsdc"]
    vsrn = ["matcher.embed_size=8", "matcher.word_size=6", "matcher.graph_layers=1", "matcher.caption_hidden=5"]
    base = ["--data", str(world), "--output", str(tmp_path / "run"), "--deepspeed_config", "ds_configs/zero1.json", "--cpu"]
    assert len(check_run(parse(["--recipe", "vsrn-coco", *base, *vsrn]))) == 1
    two = check_run(parse(["--recipe", "vsrn-coco", "--ranks", "2", *base, *vsrn]))
    assert two[1].startswith("warning: 256 true pairs a step where the published run has 128 (1 GPU(s))")
    tokens = check(world, tmp_path / "run", recipe="published-pretrain-base", ranks=4)
    assert tokens[1].startswith("warning: 81,920 tokens a step where the published run has 163,840 (8 GPU(s))")


def test_a_hinge_beside_a_softmax_that_leaves_the_level_free_is_named(world: Path, tmp_path: Path) -> None:
    settings = ["distil.teachers=[x]", "loss.syn=0.1", "loss.t2i=0", "loss.i2t=0"]
    (said,) = check(world, tmp_path / "run", *settings)[1:]
    assert said.startswith("warning: without loss.t2i") and said.endswith("set loss.syn=0 loss.more.contrast_syn=0.1.")
    for other in ("loss.syn=0", "loss.t2i=1", "loss.i2t=0.5", "distil.teachers=[]"):
        assert len(check(world, tmp_path / "run", *settings, other)) == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["negatives.shared=false", "negatives.count=5000"], "needs 5000 negatives but the corpus holds 59"),
        (["init=nowhere"], "nowhere does not exist; give a training run's folder"),
        (["--exports", "export-step7"], "recipe world-tags writes export, export-best, export-step400 and no export-step7"),
        (["--exports", "export-step400", "optimiser.steps=400"], "writes export, export-best and no export-step400"),
        (["--split", "testall"], "has no split 'testall'"),
        (["quintuplet.kind=adaptive"], "give offline.candidates=FOLDER"),
        (["quintuplet.kind=adaptive", "offline.candidates=nowhere"], "nowhere/candidates.json does not exist"),
        (["validate.split=val"], "has no split 'val'"),
        (["--deepspeed_config", "ds_configs/none.json"], "ds_configs/none.json does not exist"),
        (["--recipe", "world-tag"], "no recipe 'world-tag': did you mean 'world-tags'?"),
    ],
)
def test_what_the_trainer_would_refuse(world: Path, tmp_path: Path, more: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check(world, tmp_path / "run", *more)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_an_init_that_an_earlier_job_writes_is_not_looked_for(world: Path, tmp_path: Path) -> None:
    assert "from nowhere" in check(world, tmp_path / "run", "--init-later", "init=nowhere")[0]


def test_a_run_that_is_there_goes_on_with_the_same_settings_alone(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step200")
    save_config(load_config("world-tags", [*SMALL, "optimiser.lr=1e-4"]), run / "config.yaml")
    assert check(world, run, "optimiser.lr=1e-4")[0].endswith("; goes on from step200")
    with pytest.raises(UserError, match=r"--resume with other settings than .* has: optimiser.lr"):
        check(world, run)


def test_shards_that_are_gone_or_short(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in world.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "dev-000000.tar").unlink()
    with pytest.raises(UserError, match=r"dev-000000.tar is named in the manifest but missing"):
        check(copy, tmp_path / "run")
    check(copy, tmp_path / "run", "validate.every=0")  # dev is not read then
    (copy / "dev-000000.tar").write_bytes(b"short")
    with pytest.raises(UserError, match=r"dev-000000.tar has 5 bytes where"):
        check(copy, tmp_path / "run")


def test_an_output_that_cannot_be_made(world: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is no folder that can be written, so .*/file/run cannot be made"):
        check(world, tmp_path / "file" / "run")


def test_a_checkpoint_that_is_none(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds neither config.json nor export/config.json"):
        check_checkpoint(parse(["--checkpoint", str(tmp_path), "--data", str(world)]))
