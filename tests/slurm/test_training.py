"""The chain of a fine-tuning, and runs that are interrupted: by a signal, by a lost node, for good."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from slurm_cluster import NODES, ROOT, TINY, Cluster, jobs_in, settings, until

pytestmark = pytest.mark.slow
STAGE1 = [*TINY, "stage1:log.export_at=[10]", "stage2:optimiser.steps=6"]


@pytest.fixture(scope="module")
def chain(cluster: Cluster, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1, stage 2 and evaluation, by sbatch alone and undisturbed; the folder of the runs."""
    runs = tmp_path_factory.mktemp("chain")
    asked = ["--nodes=2", "--ntasks-per-node=1", "--time=30", f"--output={runs}/first.log"]
    said = cluster.call("sbatch", "--parsable", *asked, "slurm/finetune_coco.sh", *STAGE1, **settings(world, runs))
    assert cluster.finished(said.strip()) == "COMPLETED", told(runs)
    followers = jobs_in((runs / "first.log").read_text())
    assert len(followers) == 2
    for job in followers:
        assert cluster.finished(job) == "COMPLETED", told(runs)
    return runs / "finetune-coco"


def told(folder: Path) -> str:
    return "\n".join(f"--- {path}\n{path.read_text()[-3000:]}" for path in sorted(folder.rglob("*.log")))


def steps(run: Path) -> int:
    log = run / "log.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def in_the_middle(cluster: Cluster, job: str, run: Path) -> None:
    """Wait until the run has taken some steps, past its first checkpoint."""
    until(lambda: steps(run) > 6 or cluster.state(job) == "FAILED", f"steps of {run}")
    assert steps(run) < 50 and cluster.state(job) == "RUNNING", told(run.parent)


def same_weights(run: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (run, other))
    return ours.keys() == theirs.keys() and all(bool((ours[key] == theirs[key]).all()) for key in ours)


def test_stage_1_stage_2_and_evaluation(chain: Path) -> None:
    results = json.loads((chain / "stage2" / "results-test.json").read_text())
    assert results["images"] == 20 and 0 < results["recalls"]["rsum"] < 600
    assert results["provenance"]["ranks"] == 2
    first, second = (yaml.safe_load((chain / stage / "config.yaml").read_text()) for stage in ("stage1", "stage2"))
    assert (first["recipe"], first["optimiser"]["steps"], first["log"]["export_at"]) == ("world-tags", 60, [10])
    assert (second["recipe"], second["optimiser"]["steps"], second["log"]["export_at"]) == ("world-tagsdc", 6, [])
    assert second["init"] == str(chain / "stage1" / "export-step10") and second["loss"]["disc"] == 2.0
    log = (chain.parent / "first.log").read_text()
    assert "world-tagsdc into" in log and "true pairs a step on 2 rank(s)" in log
    ranks = sorted(path.name.split("-", 1)[1] for path in (chain / "stage1" / "logs").glob("*rank*.log"))
    assert ranks == ["0-rank0.log", "0-rank1.log"]
    assert (steps(chain / "stage1"), steps(chain / "stage2")) == (60, 6)
    evaluated = next((chain / "logs").glob("finetune-coco-evaluate-*.log")).read_text()
    assert f"written to {chain}/stage2/results-test.json" in evaluated, "the end of rank 0's log stands in the job's"


def test_preempted_by_a_signal_it_goes_on_to_the_same_bits(cluster: Cluster, chain: Path, world: Path, runs: Path) -> None:
    job = cluster.submit("finetune_coco.sh", *STAGE1, env=settings(world, runs))[0]
    run = runs / "finetune-coco" / "stage1"
    in_the_middle(cluster, job, run)
    log = runs / "finetune-coco" / "logs" / f"finetune-coco-stage1-{job}.log"
    followers = jobs_in(log.read_text())
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    until(lambda: cluster.job(job)["Restarts"] == "1", "the requeue")
    assert f"job {job} is requeued and goes on" in log.read_text() and "(status 75)" in log.read_text(), told(runs)
    stopped_at = (run / "checkpoints" / "latest").read_text()
    assert 6 < int(stopped_at.removeprefix("step")) < 60
    assert [cluster.state(follower) for follower in followers] == ["PENDING", "PENDING"], "they wait for the job's last end"
    assert cluster.job(followers[0])["Dependency"].startswith(f"afterok:{job}")
    assert cluster.finished(job) == "COMPLETED", told(runs)
    cluster.call("scancel", *followers)
    assert jobs_in(log.read_text()) == followers, "submitted once, not again after the requeue"
    assert f"from step {stopped_at.removeprefix('step')}" in next((run / "logs").glob("*-1-rank0.log")).read_text()
    assert same_weights(run, chain / "stage1")


@pytest.mark.parametrize(
    "told_to_slurm",
    [
        pytest.param(True, id="slurm-notices"),
        # SLURM 22.05 now and then calls a job failed that is requeued while it has not noticed that the node is gone
        pytest.param(False, id="slurm-does-not-notice", marks=pytest.mark.long),
    ],
)
def test_a_node_that_is_lost(cluster: Cluster, chain: Path, world: Path, runs: Path, told_to_slurm: bool) -> None:
    job = cluster.submit("pretrain.sh", *TINY, env=settings(world, runs) | {"NAME": "lost", "END_AFTER": "5"})[0]
    run = runs / "lost"
    in_the_middle(cluster, job, run)
    cluster.pull(NODES[1])
    down = ["scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=lost"]
    if not told_to_slurm:
        until(lambda: "does not answer" in told(runs), "the script to ask the nodes")
    # sooner or later the controller knows it too; a job that it starts on a lost node before that fails
    cluster.call(*down)
    until(lambda: cluster.job(job)["Restarts"] == "1", "the requeue")
    state = cluster.finished(job)
    cluster.mend(NODES[1])
    assert state == "COMPLETED", told(runs)
    assert "from step" in next((run / "logs").glob("*-1-rank0.log")).read_text()
    assert same_weights(run, chain / "stage1")


def test_a_cancelled_job_leaves_nothing_behind(cluster: Cluster, world: Path, runs: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    job = cluster.submit("pretrain.sh", *TINY, "optimiser.steps=3000", env=settings(world, runs) | {"NAME": "cancelled"})[0]
    run = runs / "cancelled"
    until(lambda: steps(run) > 6 or cluster.state(job) == "FAILED", "steps of the run")
    assert len(processes_of(job)) >= 4, "the batch script, srun and two ranks"
    cluster.call("scancel", job)
    until(lambda: not processes_of(job), "the end of its processes", 60)
    assert cluster.finished(job) == "CANCELLED" and cluster.job(job)["Restarts"] == "0"
    assert set(os.listdir("/dev/shm")) - before == set()
    latest = (run / "checkpoints" / "latest").read_text()
    assert int(latest.removeprefix("step")) > 6, "SLURM's SIGTERM let it save"


FAILING = """#!/bin/bash
case "$*" in *preflight*) exit 0 ;; esac
if [ "$SLURM_PROCID" = 1 ]; then echo "error: a shard is damaged" >&2; exit 3; fi
sleep 1
printf 'Traceback\\nRuntimeError: Connection closed by peer\\n' >&2
exit 1
"""


def test_a_rank_that_fails_is_named_and_what_follows_is_removed(cluster: Cluster, runs: Path, tmp_path: Path) -> None:
    """The ranks are played: rank 1 fails, rank 0 then loses the connection to it."""
    python = tmp_path / "python"
    python.write_text(FAILING)
    python.chmod(0o755)
    job = cluster.submit("finetune_coco.sh", env=settings(tmp_path, runs) | {"PYTHON": str(python)})[0]
    assert cluster.finished(job) == "FAILED" and cluster.job(job)["ExitCode"] == "3:0"
    log = (runs / "finetune-coco" / "logs" / f"finetune-coco-stage1-{job}.log").read_text()
    where = f"{runs}/finetune-coco/stage1/logs/{job}-0-rank1.log"
    assert log.endswith(f"== FAILED with status 3; rank 1 failed first, the end of {where}:\nerror: a shard is damaged\n")
    assert [cluster.finished(follower) for follower in jobs_in(log)] == ["CANCELLED", "CANCELLED"]


def processes_of(job: str) -> list[int]:
    """Processes whose environment names the job."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_sbatch_without_an_allocation_submits_itself_with_one(cluster: Cluster, world: Path, runs: Path) -> None:
    log = runs.parent / "first.log"
    env = settings(world, runs) | {"RECIPE": "world-tags", "NAME": "short"}
    job = cluster.call("sbatch", "--parsable", f"--output={log}", "slurm/pretrain.sh", *TINY, "optimiser.steps=3", **env).strip()
    assert cluster.finished(job) == "COMPLETED", told(runs.parent)
    proper = jobs_in(log.read_text())
    assert len(proper) == 1 and cluster.job(proper[0])["NumNodes"].startswith("2")
    assert cluster.finished(proper[0]) == "COMPLETED", told(runs)
    assert (runs / "short" / "export" / "config.json").is_file()


def test_the_scripts_are_found_from_the_repository_alone(cluster: Cluster, tmp_path: Path) -> None:
    """sbatch runs a copy of the script: it must find its neighbours."""
    log = tmp_path / "out.log"
    done = subprocess.run(
        ["sbatch", "--parsable", "--wait", f"--output={log}", f"{ROOT}/slurm/pretrain.sh"],
        cwd=tmp_path, env=os.environ | cluster.env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "is not the repository; submit from its folder" in log.read_text()
