"""A corpus that is walked through in windows: memory holds one of them, and a resumed run keeps the size of its micro-batches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tagsds.config import load_config
from tagsds.data.source import BankSource
from tagsds.prepare import batch_size
from tagsds.ranks import World
from tests import launch

WATCH = Path(__file__).with_name("watch_windows.py")


def one_shard_of(world: Path) -> float:
    """data.max_gib for one of the two training shards at a time."""
    return 1.5 * max(path.stat().st_size for path in world.glob("train-*.tar")) / 2**30


@pytest.mark.parametrize(
    ("recipe", "ds_config", "settings"),
    [
        ("published-base", "zero1", launch.TAGS_DC),
        ("published-base", "zero3_bf16", ["batch.accumulation=2"]),
        ("published-pretrain-base", "zero2", []),
    ],
    ids=["tags-dc", "zero3", "pretrain"],
)
def test_the_old_window_is_gone_when_the_next_is_loaded(world, tmp_path, recipe, ds_config, settings):
    window = [f"data.max_gib={one_shard_of(world)}", "data.window_steps=2"]
    command = [sys.executable, str(WATCH), "--recipe", recipe, "--data", str(world), "--output", str(tmp_path / "run")]
    command += ["--deepspeed_config", f"ds_configs/{ds_config}.json", *launch.TINY, *settings, *window]
    env = {"PYTHONPATH": str(launch.ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    env["MASTER_PORT"] = str(launch.free_port())
    done = subprocess.run(command, cwd=launch.ROOT, env=os.environ | env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    loads = [line for line in done.stdout.splitlines() if line.startswith("window")]
    assert loads == ["window 0: 0 alive", "window 1: 0 alive", "window 2: 0 alive"]
    assert "tf32: False False" in done.stdout, "training starts without TF32"


def pairs_of_windows(world: Path, window: list[str], tokens: int) -> list[int]:
    """What `batch.tokens` gives with each of the first four windows in memory."""
    config = load_config("published-base", [*launch.TINY, *window, f"batch.tokens={tokens}"])
    source = BankSource(str(world), config.data, config.seed, World())
    return [batch_size(config, source.at(step)[0]) for step in range(0, 4 * config.data.window_steps, config.data.window_steps)]


def test_a_run_sized_by_tokens_resumes_in_a_window_of_other_lengths(world, tmp_path):
    """The pairs of a micro-batch stay those of the start, and the numbers those of an undisturbed run."""
    window = [f"data.max_gib={one_shard_of(world)}", "data.window_steps=2"]
    budgets = {tokens: pairs_of_windows(world, window, tokens) for tokens in range(60, 1500, 7)}
    tokens = next(tokens for tokens, pairs in budgets.items() if pairs[2] != pairs[0] != pairs[1])
    settings = [*launch.TINY, *window, f"batch.tokens={tokens}", "log.checkpoint_every=3"]
    run, asked = tmp_path / "run", load_config("published-base", settings)
    launch.train(world, run, "ds_configs/zero1.json", settings)
    expected, weights = launch.numbers(run), load_file(run / "export" / "model.safetensors")
    saved = (run / "config.yaml").read_text()
    assert f"pairs: {budgets[tokens][0]}\n" in saved and asked.batch.pairs != budgets[tokens][0]

    # what a kill after step 3 leaves: window 1 of windows 0, 1, 2
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints" / "step6")
    (run / "checkpoints" / "latest").write_text("step3")
    output = launch.train(world, run, "ds_configs/zero1.json", settings, resume=True)
    assert "from step 3" in output and f"{budgets[tokens][0]} true pairs a step" in output
    assert (run / "config.yaml").read_text() == saved
    assert launch.numbers(run) == expected
    again = load_file(run / "export" / "model.safetensors")
    assert weights.keys() == again.keys() and all(bool((weights[key] == again[key]).all()) for key in weights)
