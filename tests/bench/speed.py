"""The benchmark of `make bench`: all parts, one after the other, each in a process of its own, into one file of rows.

    python -m tests.bench.speed --output benchmarks/2026-11-21-speed.json [--parts step growth] [--tiny]

Parts that are not named keep the rows that the file has. `python -m tests.bench.page docs/results/speed.md` turns the newest rows
into tables. The whole takes some ten minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# part -> its module and arguments; arguments of the tiny run, which shows that all of it works
PARTS: dict[str, tuple[str, list[str], list[str]]] = {
    "step": (
        "run", ["--preset", "issue", "--rows", "^(scorer|ours|plain|option|kernel)", "--repeats", "1"],
        ["--preset", "tiny", "--rows", "^(scorer|ours|plain)$", "--repeats", "1"],
    ),
    "savings": (
        "run", ["--preset", "small", "--rows", "^(ours$|without)", "--repeats", "3"],
        ["--preset", "tiny", "--rows", "without [25]", "--repeats", "1"],
    ),
    "phases": ("phases", ["--preset", "issue", "--repeats", "2"], ["--preset", "tiny", "--repeats", "1"]),
    "growth": ("growth", [], ["--tiny", "--repeats", "1"]),
    "small": ("small", [], ["--steps", "1", "--images", "100", "--only", "world, TAGS stage 1"]),
}  # fmt: skip


def run_part(name: str, tiny: bool, place: Path) -> dict | None:
    """The part's rows; None where it failed, with its error on stderr."""
    module, full, small = PARTS[name]
    output = place / f"{name}.json"
    command = [sys.executable, "-m", f"tests.bench.{module}", *(small if tiny else full), "--output", str(output)]
    print(f"\n== {name}: {' '.join(command[2:-2])}", flush=True)
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT)
    print(f"({name}: {time.perf_counter() - begin:.0f} s)", flush=True)
    return None if done.returncode or not output.is_file() else json.loads(output.read_text())


def add_part(output: Path, name: str, rows: dict) -> None:
    """Write the part into the file, beside the parts that are there."""
    parts = json.loads(output.read_text())["parts"] if output.is_file() else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"parts": parts | {name: rows}}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--tiny", action="store_true", help="sizes too small to measure anything")
    args = parser.parse_args(argv)
    failed = []
    with tempfile.TemporaryDirectory() as place:
        for name in args.parts:
            rows = run_part(name, args.tiny, Path(place))
            if rows is None:
                failed.append(name)
            else:
                add_part(args.output, name, rows)
    if failed:
        print(f"error: these parts failed, see above: {', '.join(failed)}", file=sys.stderr)
    else:
        print(f"\nrows: {args.output}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
