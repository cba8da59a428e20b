"""Start real training runs from tests: the same command a user types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
QUIET = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

TINY = [
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "batch.pairs=4",
    "batch.accumulation=1",
    "optimiser.lr=1e-3",
    "optimiser.steps=6",
    "optimiser.warmup_steps=2",
    "negatives.count=11",
    "negatives.keep=3",
    "synthetic.maskings=2",
    "synthetic.refills=3",
    "log.every=1",
    "log.panel_every=0",
    "log.examples=2",
]
TAGS_DC = ["loss.syn=0.5", "loss.mlm=0.1", "loss.disc=0.2", "loss.corr=0.2"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def arguments_of(
    data: Path, output: Path, ds_config: str, overrides: list[str], resume: bool = False, recipe: str = "published-base"
) -> list[str]:
    """What a user types behind `tagsds/train.py`."""
    command = ["--deepspeed_config", ds_config, "--recipe", recipe, "--data", str(data), "--output", str(output)]
    return [*command, *(["--resume"] if resume else []), *overrides]


def start(*run: Any, ranks: int = 1, **options: Any) -> subprocess.Popen[str]:
    """What `arguments_of` says, by DeepSpeed's launcher, in a process group of its own."""
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port())]
    command += ["tagsds/train.py", *arguments_of(*run, **options)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | QUIET, text=True, start_new_session=True, **pipes)


def port_of(process: subprocess.Popen[str]) -> str:
    command = process.args
    assert isinstance(command, list)
    return str(command[command.index("--master_port") + 1])


def start_ranks(command: list[str], ranks: int, port: int, output: Any) -> list[subprocess.Popen[str]]:
    """A Python file and its arguments as processes that find each other, as the launcher starts them, without its two processes.

    output   where each writes: subprocess.PIPE (errors apart), or a file (errors too)
    """
    shared = {"WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= QUIET | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    errors = subprocess.PIPE if output == subprocess.PIPE else subprocess.STDOUT
    return [
        subprocess.Popen(
            [sys.executable, *command, f"--local_rank={rank}"],
            cwd=ROOT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=output,
            stderr=errors,
            text=True,
        )
        for rank in range(ranks)
    ]


def train(*run: Any, ranks: int = 1, **options: Any) -> str:
    """What `arguments_of` says, to its end; the output of all ranks, or an assertion with it."""
    port, end = free_port(), time.monotonic() + 240
    command = ["tagsds/train.py", *arguments_of(*run, **options)]
    with tempfile.TemporaryFile("w+") as written:
        processes = start_ranks(command, ranks, port, written)
        try:
            while any(process.poll() is None for process in processes):
                assert not any(process.returncode for process in processes) and time.monotonic() < end, tail_of(written)
                time.sleep(0.05)
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * ranks, tail_of(written)
        left = list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"))
        assert left == [], "shared memory that outlives the run"
        written.seek(0)
        return written.read()


def tail_of(written: IO[str]) -> str:
    written.seek(0)
    return written.read()[-4000:]


def run_two(*command: object) -> list[str]:
    """A Python file and its arguments on two ranks; what each printed."""
    processes = start_ranks([*map(str, command)], 2, free_port(), subprocess.PIPE)
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [printed for printed, _ in outputs]


def cut(run: Path, copy: Path, step: int) -> None:
    """A copy of a finished run as a kill after the checkpoint of `step` leaves it."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").glob("step*"):
        if path.name != f"step{step}":
            shutil.rmtree(path)
    (copy / "checkpoints" / "latest").write_text(f"step{step}")
    shutil.rmtree(copy / "export")


def kill(process: subprocess.Popen[str]) -> None:
    """The plug is pulled: the launcher and its ranks at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def numbers(output: Path) -> list[dict[str, Any]]:
    """The rows of log.jsonl without what a clock or the machine says."""
    return [
        {key: value for key, value in row.items() if key not in ("time_s", "memory/gib") and not key.startswith("speed/")}
        for row in rows(output)
    ]
