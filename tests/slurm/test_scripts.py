"""The scripts without a cluster: what they would run, what they refuse, and whom they blame."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from slurm_cluster import ROOT, run_script, settings

TINY = ["model.hidden_size=32", "model.num_attention_heads=2", "negatives.keep=3", "stage1:log.export_at=[10]"]


def snapshot(*folders: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def commands(output: str) -> list[str]:
    return [line.strip() for line in output.splitlines() if line.startswith("    ")]


def test_a_dry_run_prints_the_whole_chain_and_changes_nothing(world: Path, runs: Path) -> None:
    before = snapshot(runs.parent, world)
    done = run_script("finetune_coco.sh", "--dry-run", *TINY, "stage2:optimiser.lr=4e-5", env=settings(world, runs))
    assert done.returncode == 0, done.stderr
    stage1, stage2, evaluation, *work = commands(done.stdout)
    for line, part in ((stage1, "stage1"), (stage2, "stage2"), (evaluation, "evaluate")):
        assert line.startswith(f"TAGSDS_PART={part} sbatch --parsable --job-name=finetune-coco-{part} --time=30 ")
        assert "--nodes=2 --ntasks-per-node=1 --cpus-per-task=1" in line and "--requeue --signal=B:USR1@120" in line
        assert "stage2:optimiser.lr=4e-5" in line and "--dry-run" not in line and "gpus" not in line
    assert "dependency" not in stage1
    assert "--dependency=afterok:" in stage2 and "--dependency=afterok:" in evaluation
    assert stage2.count("--kill-on-invalid-dep=yes") == evaluation.count("--kill-on-invalid-dep=yes") == 1
    assert len(work) == 3 and all(line.startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1") for line in work)
    train1, train2, evaluate = work
    assert "-m tagsds.train" in train1 and "--recipe world-tags " in train1 and " log.export_at=" in train1 and "4e-5" not in train1
    assert "--recipe world-tagsdc " in train2 and " optimiser.lr=4e-5" in train2 and "export_at" not in train2
    assert f"init={runs}/finetune-coco/stage1/export-step10" in train2
    assert f"-m tagsds.evaluate --checkpoint {runs}/finetune-coco/stage2" in evaluate
    assert all("--resume" in line for line in (train1, train2))
    assert snapshot(runs.parent, world) == before and not runs.exists()


def test_gpus_are_asked_for_and_each_task_sees_them_as_said(world: Path, runs: Path) -> None:
    env = settings(world, runs) | {
        "GPUS_PER_NODE": "4", "TASKS_PER_NODE": "4", "NODES": "3", "ACCOUNT": "lab", "PARTITION": "gpu",
        "SBATCH_MORE": "--qos=long",
    }  # fmt: skip
    done = run_script("pretrain.sh", "--dry-run", "negatives.keep=3", env=env)
    job, work = commands(done.stdout)
    asked = ("--nodes=3", "--ntasks-per-node=4", "--gpus-per-node=4", "--account=lab", "--partition=gpu", "--qos=long")
    assert all(option in job.split() for option in asked)
    assert "--ntasks=12" in work and "--gpu-bind=none" in work and "--cpu-bind=cores" in work and "--kill-on-bad-exit=0" in work
    env |= {"GPU_OPTIONS": "--gpus-per-task=1"}
    alone = commands(run_script("pretrain.sh", "--dry-run", "negatives.keep=3", env=env).stdout)
    assert "--gpus-per-task=1" in alone[1] and "--gpu-bind" not in alone[1]


def test_a_dry_run_of_packing(runs: Path, tmp_path: Path) -> None:
    env = settings(tmp_path / "data", runs) | {"SLICES": "5", "PACK_CPUS": "3", "PACK_PARTITION": "cpu"}
    done = run_script("pack.sh", "--dry-run", "world", "--train", "30", env=env)
    assert done.returncode == 0, done.stderr
    array, merge, one, last = commands(done.stdout)
    assert "--array=1-5" in array and "--cpus-per-task=3" in array and "--partition=cpu" in array
    assert "--array" not in merge and "--dependency=afterok:" in merge and "--kill-on-invalid-dep=yes" in merge
    assert one.endswith("--workers 3 --slice 1/5") and last.endswith("--workers 3 --merge")
    assert os.listdir(tmp_path) == []


def test_dry_runs_of_mining_and_evaluation_check_the_checkpoint(world: Path, runs: Path) -> None:
    for script in ("mine.sh", "evaluate.sh"):
        done = run_script(script, "--dry-run", env=settings(world, runs) | {"CHECKPOINT": str(runs / "none")})
        assert done.returncode == 2 and done.stderr == f"error: {runs}/none does not exist; give a training run's folder or one " \
            "with config.json.\n"  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "changes", "sentence"),
    [
        ([*TINY, "los.syn=1"], {}, "unknown key 'los'"),
        (TINY, {"DATA": "nowhere"}, "nowhere/manifest.json does not exist"),
        (TINY, {"STAGE1_EXPORT": "export-step11"}, "no export-step11, from which the next stage starts"),
        (TINY, {"ACTIVATE": "false"}, "ACTIVATE='false' failed"),
        (TINY, {"PYTHON": "no-python"}, "no-python is not there"),
    ],
    ids=["key", "data", "export", "activate", "python"],
)
def test_what_is_wrong_is_said_in_one_sentence_before_anything_is_queued(
    world: Path, runs: Path, arguments: list[str], changes: dict[str, str], sentence: str
) -> None:
    done = run_script("finetune_coco.sh", *arguments, env=settings(world, runs) | {"PATH": os.environ["PATH"]} | changes)
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and sentence in said[0]
    assert not runs.exists() and "sbatch" not in done.stdout


def sourced(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Lines of bash behind lib.sh."""
    return subprocess.run(["bash", "-c", f". slurm/lib.sh\n{text}"], cwd=ROOT, env=os.environ | {"F": str(folder)},
                          capture_output=True, text=True, timeout=60)  # fmt: skip


@pytest.mark.parametrize(
    ("logs", "srun", "culprit"),
    [
        # rank 0 noticed first that its neighbour was gone, and is no culprit
        ({0: "Traceback\nRuntimeError: Connection closed by peer", 1: "Traceback\nValueError: a broken shard"}, "", 1),
        ({0: "fine", 1: "error: the loss is not finite", 2: "Traceback\nConnection reset by peer"}, "", 1),
        ({0: "Traceback\nfirst", 1: "Traceback\nsecond"}, "", 0),
        ({0: "Traceback\nConnection reset by peer", 1: "Traceback\nConnection closed"}, "", 0),
        ({0: "step 1", 1: "step 1"}, "srun: error: node2: task 1: Killed\nsrun: error: node1: task 0: Terminated", 1),
    ],
    ids=["neighbour", "sentence", "earliest", "complaints-alone", "killed"],
)
def test_the_rank_that_failed_first_is_named(tmp_path: Path, logs: dict[int, str], srun: str, culprit: int) -> None:
    for number, (rank, text) in enumerate(logs.items()):
        log = tmp_path / f"7-0-rank{rank}.log"
        log.write_text(f"loading\n{text}\n")
        os.utime(log, (1000 + number, 1000 + number))
    (tmp_path / "7-0-srun.log").write_text(srun)
    lines = sourced('blame 1 "$F/7-0"', tmp_path).stdout.splitlines()
    where = f"{tmp_path}/7-0-rank{culprit}.log"
    assert lines[0] == f"== FAILED with status 1; rank {culprit} failed first, the end of {where}:"
    assert lines[1:] == ["loading", *logs[culprit].splitlines()]


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(tmp_path: Path) -> None:
    calls = 'scontrol() { echo "scontrol $*"; }; sleep() { :; }; SLURM_JOB_ID=7; requeue "interrupted" "$F" "$F/7-0"'
    said = [sourced(calls, tmp_path) for _ in range(4)]
    assert [("scontrol requeue 7" in done.stdout, done.returncode) for done in said] == [(True, 75)] * 3 + [(False, 2)]
    assert "got no further in three starts" in said[-1].stderr
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step4")
    assert sourced(calls, tmp_path).returncode == 75, "progress starts the count anew"


def test_locks_of_interrupted_compilations(tmp_path: Path) -> None:
    folder, begin = tmp_path / "extensions" / "py" / "adam", tmp_path / "begin"
    folder.mkdir(parents=True)
    for path in (folder / "lock", folder / "adam.so", begin):
        path.touch()
    os.utime(folder / "lock", (1000, 1000))
    os.utime(begin, (2000, 2000))
    sourced("TORCH_EXTENSIONS_DIR=$F/extensions forget_locks $F/begin", tmp_path)
    assert (folder / "lock").exists(), "an older one is another job's"
    os.utime(folder / "lock", (3000, 3000))
    sourced("TORCH_EXTENSIONS_DIR=$F/extensions forget_locks $F/begin", tmp_path)
    assert os.listdir(folder) == ["adam.so"]
