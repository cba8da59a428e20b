"""Start real training runs from tests: the same command a user types."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

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


def start(
    data: Path, output: Path, ds_config: str, overrides: list[str], ranks: int = 1, resume: bool = False,
    recipe: str = "published-base",
) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port())]
    command += ["tagsds/train.py", "--deepspeed_config", ds_config, "--recipe", recipe]
    command += ["--data", str(data), "--output", str(output), *(["--resume"] if resume else []), *overrides]
    env = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def port_of(process: subprocess.Popen[str]) -> str:
    command = process.args
    assert isinstance(command, list)
    return str(command[command.index("--master_port") + 1])


def train(*args: Any, **kwargs: Any) -> str:
    """Run to the end; the output, or an assertion with it."""
    process = start(*args, **kwargs)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    left = list(Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port_of(process)}_*"))
    assert left == [], "shared memory that outlives the run"
    return output


def run_two(*command: object, **environment: str) -> list[str]:
    """A Python file and its arguments as two processes that find each other, without a launcher; what each printed."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command), f"--local_rank={rank}"],
            env=os.environ | shared | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
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
