"""A SLURM of three virtual nodes on this machine, and jobs on two of them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SCRIPT = Path(__file__).parent / "cluster.sh"
NODES = ("tagsds-node1", "tagsds-node2", "tagsds-node3")
LASTS_S = 15.0  # a requeued job waits 6 to 12 s
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}

TINY = [
    "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=64",
    "batch.pairs=4", "optimiser.steps=60", "optimiser.warmup_steps=2", "negatives.keep=3",
    "log.every=1", "log.panel_every=0", "log.examples=0", "log.checkpoint_every=4", "validate.every=0",
]  # fmt: skip


def settings(data: Path, runs: Path) -> dict[str, str]:
    """What a user writes into slurm/env.sh, for two ranks on CPUs."""
    return {
        "NODES": "2", "GPUS_PER_NODE": "0", "TASKS_PER_NODE": "1", "CPUS_PER_TASK": "1", "TIME_LIMIT": "30", "DATA": str(data),
        "RUNS": str(runs), "DS_CONFIG": "ds_configs/zero1.json", "STAGE1": "world-tags", "STAGE2": "world-tagsdc",
        "STAGE1_EXPORT": "export-step10", "RECIPE": "world-tags", "EVALUATION": "", "ESTIMATE": "no", "ACTIVATE": "",
        "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "END_AFTER": "20",
    }  # fmt: skip


def run_script(script: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`bash slurm/SCRIPT ARGUMENTS`, as on a login node."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_JOB", "SLURM_STEP"))}
    command = ["bash", f"slurm/{script}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=outside | env, capture_output=True, text=True, timeout=300)


def until(happened: Callable[[], object], what: str, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


@dataclass
class Cluster:
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def call(self, *command: str, **extra: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=os.environ | self.env | extra, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller says of a job: {JobState: ..., Dependency: ..., Restarts: ...}."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", "-o", number)))

    def state(self, number: str) -> str:
        return self.job(number)["JobState"]

    def finished(self, number: str, seconds: float = 600) -> str:
        """Wait for a job's end; its last state. A job that is being requeued shows an end, too, until its nodes are done with it:
        the end is one that lasts."""

        def ended() -> bool:
            state = self.state(number)
            if state not in ENDED or state == "COMPLETED":
                return state == "COMPLETED"
            time.sleep(LASTS_S)
            return self.state(number) in ENDED

        until(ended, f"the end of job {number}", seconds)
        return self.state(number)

    def submit(self, script: str, *arguments: str, env: dict[str, str]) -> list[str]:
        """`bash slurm/SCRIPT ARGUMENTS`; the numbers of the jobs it says it submitted."""
        done = run_script(script, *arguments, env=self.env | env)
        assert done.returncode == 0, done.stdout + done.stderr
        return jobs_in(done.stdout)

    def pull(self, node: str) -> None:
        """All processes of the node are killed at once; SLURM is told."""
        self.call(str(SCRIPT), "pull", str(self.folder), node)

    def mend(self, node: str) -> None:
        subprocess.run([SCRIPT, "start", self.folder, node], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
        subprocess.run(resume, env=os.environ | self.env, capture_output=True)  # refused where the daemon has done it already
        until(lambda: self.call("sinfo", "-h", "-n", node, "-o", "%T").strip() in ("idle", "mixed", "allocated"), f"{node} is back")


def jobs_in(text: str) -> list[str]:
    return re.findall(r"^== job (\d+):", text, re.MULTILINE)


def reason_to_skip() -> str:
    absent = [tool for tool in ("slurmctld", "slurmd", "sbatch", "munged", "unshare") if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge): the tests on a SLURM of virtual nodes are left out"
    if os.geteuid() or subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "a SLURM of virtual nodes needs root and name spaces: its tests are left out"
    return ""


def free_ports(count: int) -> int:
    """The first of so many free ports in a row, below those that the system gives out by itself."""
    for first in range(17200, 19900, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for opened in sockets:
                opened.close()
    raise AssertionError("no free ports")
