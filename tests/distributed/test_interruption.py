"""Preemption: a signal, a time limit or a STOP file ends all ranks after the same step, with a checkpoint and status 75, under the
deepspeed launcher and under torchrun; resumed, the run ends at the numbers of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests import launch

SETTINGS = [*launch.TINY, *launch.TAGS_DC, "optimiser.steps=24", "log.checkpoint_every=0", "log.examples=0"]


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch.train(world, run, "ds_configs/zero1.json", SETTINGS, ranks=2)
    return run


def torchrun(world: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", "--master-port", str(launch.free_port())]
    command += ["tagsds/train.py", "--deepspeed_config", "ds_configs/zero1.json", "--recipe", "published-base"]
    command += ["--data", str(world), "--output", str(output), "--resume", *options, *SETTINGS]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        command, cwd=launch.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_rows(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.time() + 300
    while process.poll() is None and time.time() < deadline:
        if (output / "log.jsonl").is_file() and len(launch.rows(output)) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0][-3000:])


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids by rank."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        environment = child.environ()
        if "RANK" in environment and "tagsds/train.py" in child.cmdline():
            found[int(environment["RANK"])] = child.pid
    return found


def left_early(process: subprocess.Popen[str], output: Path, why: str, status: int = 75) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == status, printed[-3000:]
    assert why in printed and "--resume goes on" in printed
    assert not (output / "export").exists() and (output / "checkpoints" / "latest").is_file()
    return printed


def equal(run: Path, whole: Path) -> None:
    assert launch.numbers(run) == launch.numbers(whole)
    ours, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (run, whole))
    assert ours.keys() == theirs.keys() and all(bool((ours[key] == theirs[key]).all()) for key in ours)


def test_a_signal_to_one_rank_and_a_stop_file_under_deepspeed(world: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch.start(world, run, "ds_configs/zero1.json", SETTINGS, ranks=2)
    wait_for_rows(process, run, 2)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    left_early(process, run, "SIGUSR1 came: saved after step")

    process = launch.start(world, run, "ds_configs/zero1.json", SETTINGS, ranks=2, resume=True)
    already = len(launch.rows(run))
    wait_for_rows(process, run, already + 1)
    (run / "STOP").touch()
    left_early(process, run, "STOP is there: saved after step")

    launch.train(world, run, "ds_configs/zero1.json", SETTINGS, ranks=2, resume=True)
    equal(run, whole)


def test_sigterm_and_a_time_limit_under_torchrun(world: Path, whole: Path, tmp_path: Path) -> None:
    """torchrun passes SIGTERM on to its workers, and ends with a status of its own."""
    run = tmp_path / "run"
    process = torchrun(world, run, "--time-limit", "0.0001")
    left_early(process, run, "0.0001 minutes are over (--time-limit): saved after step 1 of 24", status=1)

    process = torchrun(world, run)
    wait_for_rows(process, run, 3)
    process.send_signal(signal.SIGTERM)
    left_early(process, run, "SIGTERM came: saved after step", status=1)

    process = torchrun(world, run)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed[-3000:]
    equal(run, whole)


def test_a_rank_that_is_killed_ends_all(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch.start(world, run, "ds_configs/zero1.json", [*SETTINGS, "optimiser.steps=2000"], ranks=2)
    wait_for_rows(process, run, 2)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    begin = time.monotonic()
    process.communicate(timeout=120)
    assert process.returncode != 0 and time.monotonic() - begin < 90
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in ranks.values())
    assert list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{launch.port_of(process)}_*")) == []
