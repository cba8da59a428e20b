"""Loss curves of a run that changes its ranks and ZeRO stage twice, over those of an undisturbed run, in one picture:

    python -m tests.bench.resume_curves --output FOLDER [--picture docs/results/resume.svg]

The embedded world, 300 training images, an encoder of 2 layers of width 64, dropout on, the retrieval baseline and TAGS-DC;
60 steps of 24 true pairs, changed after step 20 and 40. Prints the largest relative difference of the total loss for each chain,
and the first step at which it is above rounding: TAGS-DC draws words from probabilities, and a difference in their last bit can
give another word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests import launch

STEPS, CHANGE = 60, 20
SETTINGS = [
    *launch.TINY, "model.hidden_size=64", "model.intermediate_size=128", f"optimiser.steps={STEPS}",
    "batch.accumulation=6", f"log.checkpoint_every={CHANGE}", "log.keep_checkpoints=0", "log.examples=0", "negatives.count=29",
]  # fmt: skip
OBJECTIVES: dict[str, list[str]] = {"retrieval baseline": [], "TAGS-DC": launch.TAGS_DC}
ROUNDING = 1e-5
CHAINS = {"1 -> 2 -> 1 ranks, ZeRO 1 -> 3 -> 2": [(2, 3), (1, 2)], "1 -> 2 -> 3 ranks, ZeRO 1 -> 3 -> 0": [(2, 3), (3, 0)]}


def zero_file(folder: Path, stage: int) -> str:
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": stage}} if stage else {}))
    return str(path)


def go_on(world: Path, source: Path, run: Path, step: int, ranks: int, ds_config: str, settings: list[str]) -> None:
    """Resume a copy of a run as a kill after `step` leaves it."""
    launch.cut(source, run, step)
    launch.train(world, run, ds_config, settings, ranks=ranks, resume=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    world = args.output / "world"
    pack = [sys.executable, "-m", "preprocess.pack", "world", "--out", str(world), "--train", "300", "--dev", "12", "--test", "20"]
    subprocess.run(pack, cwd=launch.ROOT, check=True)
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, (objective, losses) in zip(axes, OBJECTIVES.items(), strict=True):
        folder, settings = args.output / objective.replace(" ", "-"), [*SETTINGS, *losses]
        launch.train(world, folder / "whole", zero_file(args.output, 1), settings)
        runs = {"undisturbed, 1 rank, ZeRO 1": folder / "whole"}
        for number, (name, changes) in enumerate(CHAINS.items()):
            last = folder / "whole"
            for place, (ranks, stage) in enumerate(changes):
                run = folder / f"chain{number}-{place}"
                go_on(world, last, run, CHANGE * (place + 1), ranks, zero_file(args.output, stage), settings)
                last = run
            runs[name] = last
        curves = {name: [row["loss/total"] for row in launch.numbers(run)] for name, run in runs.items()}
        plain = next(iter(curves.values()))
        for (name, losses_of), style in zip(curves.items(), ("-", "--", ":"), strict=True):
            axis.plot(range(1, STEPS + 1), losses_of, style, label=name, lw=2.5 if style == "-" else 1.8)
            apart = [abs(ours - theirs) / abs(theirs) for ours, theirs in zip(losses_of, plain, strict=True)]
            first = next((step for step, value in enumerate(apart, 1) if value > ROUNDING), None)
            before = max(apart[: first - 1] if first else apart)
            later = f", then up to {max(apart):.1e} from step {first} on" if first else ""
            print(f"{objective}, {name}: {before:.1e}{later}", flush=True)
        for step in (CHANGE, 2 * CHANGE):
            axis.axvline(step, color="grey", lw=0.7)
        axis.set(xlabel="optimiser step", ylabel="total loss", title=objective)
        axis.legend(fontsize=8)
    fig.suptitle("A run that changes its ranks and ZeRO stage twice")
    fig.tight_layout()
    picture = args.picture or args.output / "resume.svg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(picture, metadata={"Date": None})
    print(f"picture in {picture}")


if __name__ == "__main__":
    main()
