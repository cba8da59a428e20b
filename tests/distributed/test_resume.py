"""A run whose plug was pulled goes on to the same numbers, to the bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests import launch

SETTINGS = [*launch.TINY, *launch.TAGS_DC, "optimiser.steps=12", "log.checkpoint_every=4", "log.keep_checkpoints=1"]


def test_killed_and_resumed_equals_undisturbed(world: Path, tmp_path: Path) -> None:
    launch.train(world, tmp_path / "whole", "ds_configs/zero1.json", SETTINGS)
    broken = tmp_path / "broken"
    process = launch.start(world, broken, "ds_configs/zero1.json", SETTINGS)
    deadline = time.time() + 120
    while not (broken / "checkpoints" / "latest").is_file() and time.time() < deadline and process.poll() is None:
        time.sleep(0.02)
    launch.kill(process)
    assert (broken / "checkpoints" / "latest").is_file(), "no checkpoint was written before the plug was pulled"
    assert not (broken / "export").exists(), "the run had ended already: nothing was interrupted"

    launch.train(world, broken, "ds_configs/zero1.json", SETTINGS, resume=True)
    assert launch.numbers(broken) == launch.numbers(tmp_path / "whole")
    ours, theirs = (load_file(run / "export" / "model.safetensors") for run in (broken, tmp_path / "whole"))
    assert ours.keys() == theirs.keys()
    assert all(bool((ours[key] == theirs[key]).all()) for key in ours)


@pytest.mark.parametrize(
    ("overrides", "ds_config", "sentence"),
    [
        (["los.syn=1"], "ds_configs/zero1.json", "unknown key 'los': did you mean 'loss'?"),
        (["negatives.count=5000"], "ds_configs/zero1.json", "needs 5000 negatives but the corpus holds 59"),
        ([], "ds_configs/fp16.json", "fp16 needs a GPU"),
    ],
    ids=["unknown-key", "too-few-negatives", "fp16-on-cpu"],
)
def test_a_users_mistake_gets_one_sentence(world: Path, tmp_path: Path, overrides, ds_config: str, sentence: str) -> None:
    process = launch.start(world, tmp_path / "run", ds_config, [*launch.TINY, *overrides])
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and sentence in errors[0], output[-2000:]
    assert "Traceback" not in output
