"""One run whose plug is pulled again and again: `python -m tests.distributed.kills --kills 20 --ranks 2 --output FOLDER`.

Each kill waits for a phase of the run (loading, training, validating, saving, exporting, mining, evaluating), then for a random
moment, and sends SIGKILL to the launcher and all ranks. In the end weights, log and recalls must be those of an undisturbed run, to
the bit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tagsds.data.shards import load_bank
from tests import launch
from tests.candidates import candidates_of, write_candidates

STEPS, SAVE, VALIDATE, MINE = 24, 3, 4, 6
SETTINGS = [
    *launch.TINY, *launch.TAGS_DC, f"optimiser.steps={STEPS}", f"log.checkpoint_every={SAVE}", f"validate.every={VALIDATE}",
    "validate.first=8", "log.export_at=[10]", f"offline.remine_every={MINE}", "offline.replace_random=true", "offline.first=0",
    "offline.last=19", "offline.pool=6",
]  # fmt: skip
TRAINING = ("loading", "training", "validating", "saving", "exporting", "mining")
EXPORTS = ("export", "export-best", "export-step10")


def start(world: Path, run: Path, ranks: int, candidates: Path, resume: bool) -> subprocess.Popen[str]:
    settings = [*SETTINGS, f"offline.candidates={candidates}"]
    return launch.start(world, run, "ds_configs/zero1.json", settings, ranks=ranks, resume=resume)


def steps(run: Path) -> list[int]:
    """Steps that have a row of training in the log, as far as it is written."""
    try:
        lines = (run / "log.jsonl").read_text().splitlines()
        return [row["step"] for row in map(json.loads, lines) if "lr" in row]
    except (FileNotFoundError, json.JSONDecodeError):
        return []


def sign_of(phase: str, run: Path, already: int) -> Callable[[], bool]:
    """Whether the run has come to a phase, of steps behind `already`."""

    def at(every: int) -> bool:
        done = steps(run)
        return bool(done) and done[-1] > already and done[-1] % every == 0

    return {
        "loading": lambda: True,
        "training": lambda: bool(steps(run)) and steps(run)[-1] > already,
        "validating": lambda: at(VALIDATE),
        "mining": lambda: at(MINE),
        "saving": lambda: any((run / "checkpoints").glob("step*.saving")),
        "exporting": lambda: any(run.glob("export*.tmp")),
    }[phase]


def kill_at(phase: str, process: subprocess.Popen[str], run: Path, rng: random.Random) -> bool:
    """Pull the plug in a phase; False where the run ended before."""
    sign = sign_of(phase, run, max(steps(run), default=0))
    while process.poll() is None:
        if sign():
            time.sleep(rng.uniform(0.5, 6.0) if phase == "loading" else rng.uniform(0.0, 0.1))
            if process.poll() is None:
                launch.kill(process)
                return True
        time.sleep(0.003)
    printed = process.communicate()[0]
    assert process.returncode == 0, printed[-4000:]
    return False


def evaluate(world: Path, run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tagsds.evaluate", "--checkpoint", str(run), "--data", str(world), "--split", "test"]
    return subprocess.Popen(
        command, cwd=launch.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(world: Path, run: Path) -> None:
    process = evaluate(world, run)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed[-4000:]


def disturbed(world: Path, run: Path, candidates: Path, ranks: int, kills: int, seed: int, phases: tuple[str, ...]) -> Counter[str]:
    """The run, killed `kills` times, to its recalls; how often in each phase."""
    rng, counts = random.Random(seed), Counter[str]()
    planned = [phases[n % len(phases)] for n in range(kills)]
    for phase in planned:
        if phase != "evaluating" and not (run / "export" / "config.json").is_file():
            if kill_at(phase, start(world, run, ranks, candidates, run.exists()), run, rng):
                counts[phase] += 1
    if not (run / "export" / "config.json").is_file():
        printed = (process := start(world, run, ranks, candidates, True)).communicate(timeout=600)[0]
        assert process.returncode == 0, printed[-4000:]
    for _ in range(kills - counts.total()):  # what was planned for the evaluation, and what training left over by ending early
        process = evaluate(world, run)
        time.sleep(rng.uniform(0.5, 5.0))
        if process.poll() is None:
            launch.kill(process)
            counts["evaluating"] += 1
    finish(world, run)
    return counts


def results_of(run: Path) -> Any:
    """The results without what a clock says or where the run lies."""

    def numbers(value: Any) -> Any:
        left_out = ("seconds", "pairs_per_second", "checkpoint", "made_at")
        return {k: numbers(v) for k, v in value.items() if k not in left_out} if isinstance(value, dict) else value

    return numbers(json.loads((run / "results-test.json").read_text()))


def differences(run: Path, whole: Path) -> list[str]:
    """What differs, in words; nothing is what is wanted."""
    found = [] if launch.numbers(run) == launch.numbers(whole) else ["log.jsonl"]
    for name in EXPORTS:
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (run, whole))
        if ours.keys() != theirs.keys() or not all(bool((ours[key] == theirs[key]).all()) for key in ours):
            found.append(name)
    return found + ([] if results_of(run) == results_of(whole) else ["results-test.json"])


def prepare(world: Path, folder: Path) -> Path:
    """Candidates drawn at random, for the run to re-order."""
    bank, _ = load_bank(world, "train", cache="none")
    (folder / "candidates").mkdir(parents=True)
    write_candidates(folder / "candidates", world, "train", candidates_of(bank, 30, 20))
    return folder / "candidates"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    world = args.output / "world"
    pack = [sys.executable, "-m", "preprocess.pack", "world", "--out", str(world), "--train", "60", "--dev", "12", "--test", "20"]
    subprocess.run([*pack, "--shard-size", "30"], cwd=launch.ROOT, check=True)
    candidates = prepare(world, args.output)
    whole, run = args.output / "whole", args.output / "killed"
    printed = (process := start(world, whole, args.ranks, candidates, False)).communicate()[0]
    assert process.returncode == 0, printed[-4000:]
    finish(world, whole)
    counts = disturbed(world, run, candidates, args.ranks, args.kills, args.seed, (*TRAINING, "evaluating"))
    print(f"{counts.total()} kills: " + ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items())))
    print("differs: " + (", ".join(differences(run, whole)) or "nothing, to the bit"))


if __name__ == "__main__":
    main()
