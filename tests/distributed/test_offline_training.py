"""Training with offline candidates through DeepSpeed: matcher and encoder, re-mined on the way, resumed, on one rank and two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tagsds import mine
from tests import launch

MATCHER = [
    "matcher.embed_size=12",
    "matcher.word_size=8",
    "matcher.caption_hidden=8",
    "batch.pairs=8",
    "optimiser.steps=6",
    "optimiser.decay_at=[4]",
    "quintuplet.warmup_steps=1",
    "log.every=1",
    "log.checkpoint_every=2",
    "log.keep_checkpoints=2",
]
DRAWN = ["offline.first=1", "offline.last=19", "offline.remine_every=3"]


@pytest.fixture(scope="module")
def candidates(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vsrn")
    launch.train(world, folder / "run", "ds_configs/zero1.json", MATCHER, recipe="coco-boxes-vsrn")
    arguments = ["--checkpoint", folder / "run", "--data", world, "--captions", 40, "--images", 10, "--output", folder / "found"]
    mine.main([str(argument) for argument in arguments])
    return folder / "found"


def pull_the_plug_at(run: Path, step: int) -> None:
    """Leave what a kill right after a checkpoint leaves."""
    shutil.rmtree(run / "export")
    (run / "checkpoints" / "latest").write_text(f"step{step}")
    for later in (run / "checkpoints").glob("step*"):
        if int(later.name[4:]) > step:
            shutil.rmtree(later)


@pytest.mark.parametrize(
    ("recipe", "settings", "ranks"),
    [
        ("coco-boxes-vsrn", [*MATCHER, "quintuplet.kind=adaptive"], 2),
        ("published-base", [*launch.TINY, "quintuplet.kind=adaptive", "offline.replace_random=true", "offline.pool=6",
                            "log.checkpoint_every=2"], 1),
    ],
    ids=["matcher", "encoder"],
)  # fmt: skip
def test_re_mined_and_resumed_equals_undisturbed(world, tmp_path, candidates, recipe, settings, ranks):
    settings = [*settings, *DRAWN, f"offline.candidates={candidates}"]
    run = tmp_path / "run"
    launch.train(world, run, "ds_configs/zero1.json", settings, ranks=ranks, recipe=recipe)
    whole, weights = launch.numbers(run), load_file(run / "export" / "model.safetensors")
    about = json.loads((run / "candidates" / "step3" / "candidates.json").read_text())
    assert about["checkpoint"].endswith("after step3")
    before = (candidates / "captions_of_image.npy").read_bytes()
    assert (run / "candidates" / "step3" / "captions_of_image.npy").read_bytes() != before, "re-mining changed nothing"

    pull_the_plug_at(run, 4)
    launch.train(world, run, "ds_configs/zero1.json", settings, ranks=ranks, resume=True, recipe=recipe)
    assert launch.numbers(run) == whole
    again = load_file(run / "export" / "model.safetensors")
    assert weights.keys() == again.keys() and all(bool((weights[key] == again[key]).all()) for key in weights)


def test_two_ranks_equal_one_with_two_micro_batches(world, tmp_path, candidates):
    settings = [*MATCHER, "quintuplet.kind=adaptive", "matcher.graph_layers=0", f"offline.candidates={candidates}",
                "offline.first=1", "offline.last=19"]  # fmt: skip
    launch.train(world, tmp_path / "two", "ds_configs/zero2.json", settings, ranks=2, recipe="coco-boxes-vsrn")
    one = [*settings, "batch.accumulation=2"]
    launch.train(world, tmp_path / "one", "ds_configs/zero1.json", one, ranks=1, recipe="coco-boxes-vsrn")
    losses = [[row["loss/total"] for row in launch.rows(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-3)
    rates = [row["lr"] for row in launch.rows(tmp_path / "one")]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["quintuplet.kind=adaptive"], "give offline.candidates=FOLDER, which tagsds-mine writes"),
        (["quintuplet.kind=adaptive", "offline.candidates=nowhere"], "candidates.json does not exist"),
        (["matcher.kind=vsnr"], "matcher.kind 'vsnr': did you mean 'vsrn'?"),
    ],
)
def test_a_users_mistake_gets_one_sentence(world, tmp_path, overrides, sentence):
    process = launch.start(
        world, tmp_path / "run", "ds_configs/zero1.json", [*MATCHER, *overrides], recipe="coco-boxes-vsrn"
    )
    output, _ = process.communicate(timeout=120)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0 and len(errors) == 1 and sentence in errors[0], output[-2000:]
