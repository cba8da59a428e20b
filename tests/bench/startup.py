"""How long a run takes to its first step, what memory a rank holds, and what windows cost, at the size of COCO's training set.

    python tests/bench/startup.py [--images 113287] [--ranks 1 2 4] [--before CHECKOUT] [--output startup.json]

The corpus has COCO's number of images and five captions each; its features are narrow (width 8, at most 3 regions), so that what
is measured is captions, files and copies, not the disk. A rank is a real `tagsds/train.py` with a tiny model. Three cases: without
a cache, with one that has yet to be built, and with one that is there; `--before` adds the same from another checkout, which may
know no `data.cache`. Seconds count from the start of the process to the first micro-batch; `data` are those in the first
`BankSource.at`; `cpu` are the CPU seconds of each, which another process's load changes less. Memory (RSS, PSS and private pages
of /proc/self/smaps_rollup) is read in the third step, after every rank has read every page of its bank. `wait` is the share of the
loop's time, from the first micro-batch to the last, that changes of the window took. Files are in the page cache: they have just
been written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if "--rank" not in sys.argv:  # a rank takes the checkout that PYTHONPATH names
    sys.path.insert(1, str(ROOT))

COCO = 113287  # images of the Karpathy training split
CASES = ("none", "built", "mapped")


# --- a rank ----------------------------------------------------------------------------------------------------------


def memory() -> dict[str, float]:
    """MiB of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kib = {name: int(value.split()[0]) for name, value in lines.items()}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"rss_mib": kib["Rss"] / 1024, "pss_mib": kib["Pss"] / 1024, "private_mib": private / 1024}


def read_all(bank: Any) -> None:
    """Touch every page of the bank, as a run does in time."""
    for table in (bank.tokens, bank.spans, bank.regions):
        for tensor in (table.values, table.lengths):
            for part in tensor.view(-1).split(1 << 20):
                part.sum()
    bank.boxes.sum()
    for strings in (bank.texts, bank.keys, bank.caption_ids):
        for number in range(0, len(strings)):
            strings[number]


def rank(report: str, arguments: list[str]) -> None:
    """`tagsds/train.py` with a watch on its source."""
    import torch.distributed as dist

    from tagsds import train
    from tagsds.data.source import BankSource

    found: dict[str, Any] = {"data_s": 0.0, "wait_s": 0.0, "windows": 0}
    real_at, real_positives, seen = BankSource.at, BankSource.positives, {"window": None, "steps": set()}

    def at(self: BankSource, step: int):
        begin, cpu = time.perf_counter(), time.process_time()
        bank, window = real_at(self, step)
        spent = time.perf_counter() - begin
        if seen["window"] is None:
            found["data_s"], found["data_cpu_s"] = spent, time.process_time() - cpu
        elif window != seen["window"]:
            found["wait_s"] += spent
            found["windows"] += 1
        seen["window"] = window
        return bank, window

    def positives(self: BankSource, draw, batch, slots):
        if not seen["steps"]:
            found["first_step_s"] = time.time() - float(os.environ["LAUNCHED"])
            found["first_clock"] = time.perf_counter()
            found["cpu_s"] = time.process_time()
        seen["steps"].add(draw.step)
        found["loop_s"] = time.perf_counter() - found["first_clock"]
        if len(seen["steps"]) == 3 and self.whole:
            read_all(real_at(self, draw.step)[0])
            dist.barrier()
            found.update(memory())
            dist.barrier()
        return real_positives(self, draw, batch, slots)

    BankSource.at, BankSource.positives = at, positives  # type: ignore[method-assign]
    train.main(arguments)
    del found["first_clock"]
    Path(report).write_text(json.dumps(found))


# --- the runs --------------------------------------------------------------------------------------------------------


def launch(data: Path, ranks: int, settings: list[str], code: Path) -> list[dict[str, Any]]:
    """One run; what each rank reports."""
    from tests.launch import TINY, free_port

    with tempfile.TemporaryDirectory() as place:
        port, running, launched = free_port(), [], time.time()
        for number in range(ranks):
            report = str(Path(place) / f"{number}.json")
            command = [sys.executable, str(Path(__file__).resolve()), "--rank", report, "--recipe", "published-base"]
            command += ["--data", str(data), "--output", str(Path(place) / "run"), "--deepspeed_config", "ds_configs/zero1.json"]
            env = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            env |= {"TQDM_DISABLE": "1", "PYTHONPATH": str(code), "LAUNCHED": str(launched)}
            log = open(Path(place) / f"{number}.log", "w")
            running.append(
                subprocess.Popen([*command, *TINY, *settings], cwd=code, env=os.environ | env, stdout=log, stderr=log)
            )
        for number, process in enumerate(running):
            if process.wait(timeout=3600):
                raise SystemExit((Path(place) / f"{number}.log").read_text()[-3000:])
        return [json.loads((Path(place) / f"{number}.json").read_text()) for number in range(ranks)]


def row_of(case: str, ranks: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The slowest rank's times, the mean of the ranks' memory."""
    row: dict[str, Any] = {"case": case, "ranks": ranks}
    row |= {name: round(max(part[name] for part in found), 2) for name in ("first_step_s", "data_s", "data_cpu_s", "cpu_s")}
    if "rss_mib" in found[0]:
        row |= {name: round(sum(part[name] for part in found) / ranks) for name in ("rss_mib", "pss_mib", "private_mib")}
    if found[0]["windows"]:
        row |= {"windows": found[0]["windows"], "loop_s": round(found[0]["loop_s"], 1)}
        row["wait_share"] = round(max(part["wait_s"] / part["loop_s"] for part in found), 4)
    return row


def cases(data: Path, ranks: int, settings: list[str], code: Path, before: Path | None) -> list[dict[str, Any]]:
    rows = []
    if before is not None:
        rows.append(row_of("before", ranks, launch(data, ranks, settings, before)))
        print(rows[-1], flush=True)
    for case in CASES:
        if case == "built":
            shutil.rmtree(data / "cache", ignore_errors=True)
        choice = ["data.cache=none"] if case == "none" else []
        rows.append(row_of(case, ranks, launch(data, ranks, [*settings, *choice], code)))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        return rank(sys.argv[2], sys.argv[3:])
    from tests.bench.run import about
    from tests.data.corpus import write_corpus

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=COCO)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--window-shards", type=int, default=10, help="shards of a window, of 1,000 images each; 0: no windows")
    parser.add_argument("--window-steps", type=int, default=300)
    parser.add_argument("--before", type=Path, help="another checkout to measure as well")
    parser.add_argument("--data", type=Path, help="where the corpus is kept (made if missing); default: a temporary folder")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.device = "cpu"
    with tempfile.TemporaryDirectory() as place:
        data = args.data or Path(place) / "corpus"
        if not (data / "manifest.json").is_file():
            begin = time.perf_counter()
            write_corpus(data, {"train": args.images}, per_shard=1000, words=10)
            print(f"corpus written in {time.perf_counter() - begin:.0f} s", flush=True)
        shards = [path.stat().st_size for path in data.glob("train-*.tar")]
        settings = ["optimiser.steps=4", "log.checkpoint_every=0", "log.examples=0"]
        rows = []
        for ranks in args.ranks:
            rows += cases(data, ranks, settings, ROOT, args.before)
        cached = sum(path.stat().st_size for path in (data / "cache").rglob("*") if path.is_file())
        windows = []
        if args.window_shards:
            gib = (args.window_shards + 0.5) * max(shards) / 2**30
            steps = 5 * args.window_steps
            settings = [f"data.max_gib={gib}", f"data.window_steps={args.window_steps}", f"optimiser.steps={steps}"]
            settings += ["log.checkpoint_every=0", "log.examples=0", "log.every=100", "validate.every=0"]
            windows = cases(data, 1, settings, ROOT, args.before)
        sizes = {"images": args.images, "captions": 5 * args.images, "shards": len(shards)}
        sizes |= {"shard_mib": round(sum(shards) / 2**20), "cache_mib": round(cached / 2**20)}
        told = {**about(args), "corpus": sizes, "load_average": os.getloadavg(), "cpus": os.cpu_count()}
        for name in ("data", "before"):
            del told["settings"][name]
        told["before"] = args.before and subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=args.before, capture_output=True, text=True
        ).stdout.strip()
        result = {"about": told, "rows": rows, "windows": windows}
        if args.output is not None:
            args.output.write_text(json.dumps(result, indent=1, default=str) + "\n")
        print(json.dumps(told, default=str))


if __name__ == "__main__":
    main()
