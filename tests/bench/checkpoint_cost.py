"""What a checkpoint costs the loop, and where the rest of a run's time goes:

    python -m tests.bench.checkpoint_cost --output FOLDER [--hidden 512 --layers 8]

Two ranks, ZeRO 1, the embedded world; a checkpoint every 5 of 20 steps, written in the background, in the loop, and not at all.
Prints seconds from the launch to the first step, seconds a step, seconds that a checkpoint holds the loop up, and the share of the
loop's time that was spent waiting for data.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from tests import launch

STEPS, EVERY = 20, 5


def run(world: Path, output: Path, sizes: list[str], settings: list[str]) -> dict[str, float]:
    begin = time.time()
    process = launch.start(world, output, "ds_configs/zero1.json", [*launch.TINY, *sizes, *settings], ranks=2)
    first = 0.0
    while process.poll() is None:
        if not first and (output / "log.jsonl").is_file() and launch.rows(output):
            first = time.time() - begin
        time.sleep(0.02)
    assert process.returncode == 0, process.communicate()[0][-3000:]
    rows = launch.rows(output)
    loop = rows[-1]["time_s"] - rows[0]["time_s"]
    size = sum(path.stat().st_size for path in (output / "checkpoints").glob("step*/*.pt")) / 2**20
    kept = len(list((output / "checkpoints").glob("step*")))
    waits = {key: rows[-1][f"speed/waited_for_{key}_s"] - rows[0][f"speed/waited_for_{key}_s"] for key in ("data", "checkpoints")}
    return {"first": first, "loop": loop, "mib": size / max(kept, 1), **waits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    world = args.output / "world"
    pack = [sys.executable, "-m", "preprocess.pack", "world", "--out", str(world), "--train", "300", "--dev", "12", "--test", "20"]
    subprocess.run(pack, cwd=launch.ROOT, check=True)
    sizes = [
        f"model.hidden_size={args.hidden}", f"model.num_hidden_layers={args.layers}", "model.num_attention_heads=8",
        f"model.intermediate_size={4 * args.hidden}", f"optimiser.steps={STEPS}", "log.examples=0",
    ]  # fmt: skip
    kinds = {
        "none": ["log.checkpoint_every=0"],
        "in the background": [f"log.checkpoint_every={EVERY}"],
        "in the loop": [f"log.checkpoint_every={EVERY}", "log.checkpoint_in_background=false"],
    }
    print("| checkpoints | launch to first step, s | s a step | MiB each | one holds the loop up, s | waiting for data, % |")
    print("|---|---|---|---|---|---|")
    found = {}
    for number, (name, settings) in enumerate(kinds.items()):
        got = found[name] = run(world, args.output / f"run{number}", sizes, settings)
        count = STEPS // EVERY - 1  # the last one is at the end, behind the last row
        held = "-" if name == "none" else f"{got['checkpoints'] / count:.2f}"
        share = 100 * got["data"] / got["loop"]
        a_step = got["loop"] / (STEPS - 1)
        print(f"| {name} | {got['first']:.1f} | {a_step:.2f} | {got['mib']:.0f} | {held} | {share:.2f} |", flush=True)
    (args.output / "costs.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
