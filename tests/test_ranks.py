"""A process's device, float32 that is float32, and shares of equal length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tagsds.engine.build import name_device_to_deepspeed
from tagsds.errors import UserError
from tagsds.ranks import World, claim_device, device_index, run_command, start_world

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("local_rank", "visible", "expected"),
    [
        (0, 1, 0),
        (3, 1, 0),  # SLURM's --gpus-per-task=1: every task sees its own GPU alone
        (0, 8, 0),
        (5, 8, 5),
        (7, 8, 7),
    ],
)
def test_the_device_of_a_local_rank(local_rank, visible, expected):
    assert device_index(local_rank, visible) == expected


@pytest.mark.parametrize(("local_rank", "visible"), [(2, 2), (7, 4)])
def test_more_processes_than_visible_devices(local_rank, visible):
    with pytest.raises(UserError) as error:
        device_index(local_rank, visible)
    text = str(error.value)
    assert f"LOCAL_RANK is {local_rank}" in text and f"only {visible} GPUs are visible" in text
    assert "CUDA_VISIBLE_DEVICES" in text and "--nproc-per-node" in text and "\n" not in text


@pytest.fixture
def gpus(monkeypatch):
    """A machine that shows so many GPUs; the devices that were made current."""

    def show(count: int, local_rank: int) -> list[torch.device]:
        chosen: list[torch.device] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setenv("WORLD_SIZE", "1")
        return chosen

    return show


@pytest.mark.parametrize(("count", "local_rank", "expected"), [(1, 3, 0), (4, 3, 3)])
def test_every_command_starts_on_that_device(gpus, count, local_rank, expected):
    chosen = gpus(count, local_rank)
    assert start_world().device == torch.device("cuda", expected)
    assert claim_device() == torch.device("cuda", expected)
    assert chosen == [torch.device("cuda", expected)] * 2


def test_a_command_without_a_device_says_so(gpus, capsys):
    gpus(2, 5)
    with pytest.raises(SystemExit):
        run_command(lambda: None, lambda options, world: pytest.fail("it ran"))
    assert "LOCAL_RANK is 5 where only 2 GPUs are visible" in capsys.readouterr().err


def test_deepspeed_is_told_the_device():
    env = {"LOCAL_RANK": "3", "RANK": "11"}
    name_device_to_deepspeed(torch.device("cuda", 0), env)
    assert env == {"LOCAL_RANK": "0", "RANK": "11"}
    env = {"LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    name_device_to_deepspeed(torch.device("cuda", 0), env)
    assert env == {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


@pytest.fixture
def tf32():
    """TF32 switched on, as something imported might have; off again afterwards."""
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = True
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


def exact_float32() -> bool:
    """By the older switches and by what each operator will use."""
    operators = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    assert torch.get_float32_matmul_precision() == ("highest" if not torch.backends.cuda.matmul.allow_tf32 else "high")
    old = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    return not old and all(operator.fp32_precision != "tf32" for operator in operators)


def test_commands_compute_float32_in_float32(tf32):
    """Evaluation and mining start so; training's start is held in tests/engine/test_windows.py."""
    assert not exact_float32()
    seen = []
    run_command(lambda: None, lambda options, world: seen.append(exact_float32()))
    assert seen == [True]


@pytest.mark.parametrize(("count", "size"), [(257, 2), (256, 2), (7, 4), (1, 3), (5, 1)])
def test_even_shares_gather_to_the_whole(count, size):
    items = torch.arange(count) + 100
    parts = [World(rank, size).even_share(items) for rank in range(size)]
    assert {len(part) for part in parts} == {-(-count // size)}
    assert torch.stack(parts, dim=1).flatten()[:count].tolist() == items.tolist()
    for rank, part in enumerate(parts):
        own = World(rank, size).share(items)
        assert part[: len(own)].tolist() == own.tolist()
        assert set(part[len(own) :].tolist()) <= {100 + count - 1}


def test_a_process_ends_with_its_status_and_not_by_the_interpreter_where_there_is_a_group(tmp_path):
    """Threads of gloo free tensors while the interpreter is torn down, which ends a process by SIGABRT now and then."""
    program = tmp_path / "program.py"
    program.write_text(
        "import atexit, os, sys\n"
        "import torch.distributed as dist\n"
        "from tagsds.ranks import end_process\n"
        "atexit.register(print, 'torn down')\n"
        "def main():\n"
        "    if sys.argv[1] == 'group':\n"
        "        dist.init_process_group('gloo', init_method=f'file://{sys.argv[2]}', rank=0, world_size=1)\n"
        "    print('worked')\n"
        "    sys.exit(int(sys.argv[3]))\n"
        "end_process(main)\n"
    )
    for where, status in (("group", 0), ("group", 75), ("alone", 0), ("alone", 2)):
        command = [sys.executable, str(program), where, str(tmp_path / f"store{status}"), str(status)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        said = "worked\n" + ("torn down\n" if where == "alone" else "")
        assert (ended.returncode, ended.stdout) == (status, said), ended.stderr
