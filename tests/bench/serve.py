"""`tagsds-serve` under load: many clients at once on one server, latencies, lost answers and the server's memory.

    python -m tests.bench.serve --checkpoint RUN --data SHARDS [--matcher RUN] [--clients 50] [--seconds 60] [--output serve.json]

Each client asks again as soon as it has its answer, with a draw of its own from MIX, the kinds of requests that a page makes.
Whatever is not status 200 with the content that was asked for counts as lost. Memory is the server's RSS, read twice a second in
the second half of the time, as libraries fill caches by the shapes they meet: means of the first and of the last quarter of the
readings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.bench.run import about

MIX = {"find images": 3, "find sentences": 1, "proofread": 3, "align": 3, "write": 1, "images": 2, "image": 2, "picture": 8}
"""how often a client asks for each"""


def start(args: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """The server as a process, and its address."""
    words = ["--checkpoint", args.checkpoint, "--data", args.data, "--split", args.split, "--port", 0, "--no-browser"]
    words += ["--queue", args.queue, "--timeout", args.timeout]
    for name in ("matcher", "threads"):
        words += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    server = subprocess.Popen(
        [sys.executable, "-m", "tagsds.serve.command", *map(str, words)], stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.match(r"open (\S+)/ ", line):
            return server, found[1]
    raise SystemExit("the server did not start; its message is above")


def rss_mib(process: int) -> float:
    kib = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert kib is not None
    return int(kib[1]) / 1024


async def one(client: httpx.AsyncClient, kind: str, draw: random.Random, keys: list[str], captions: list[str]) -> str:
    """Ask once; "" where the answer is what it should be, else what is wrong."""
    key, sentence = draw.choice(keys), draw.choice(captions)
    if kind in ("find images", "find sentences"):
        body: dict[str, Any] = {"sentence": sentence} if kind == "find images" else {"image": key}
        answer = await client.post(f"/api/{kind.replace(' ', '/')}", json=body | {"k": 12})
        good = answer.status_code == 200 and len(answer.json()["hits"]) == 12
    elif kind in ("proofread", "align", "write"):
        answer = await client.post(f"/api/{kind}", json={"image": key, "sentence": sentence})
        good = answer.status_code == 200 and bool(answer.json().get("words") or answer.json().get("written"))
    elif kind == "picture":
        answer = await client.get(f"/api/picture/{key}?small=true")
        good = answer.status_code == 200 and answer.headers["content-type"].startswith("image/") and len(answer.content) > 100
    elif kind == "image":
        answer = await client.get(f"/api/image/{key}")
        good = answer.status_code == 200 and answer.json()["key"] == key
    else:
        answer = await client.get(f"/api/images?start={draw.randrange(len(keys))}")
        good = answer.status_code == 200 and bool(answer.json()["images"])
    return "" if good else f"{answer.status_code} {answer.text[:120]}"


async def load(address: str, process: int, args: argparse.Namespace) -> dict[str, Any]:
    """All clients for `args.seconds`."""
    times: dict[str, list[float]] = {kind: [] for kind in MIX}
    lost: Counter[str] = Counter()
    memory: list[float] = []
    limits = httpx.Limits(max_connections=args.clients, max_keepalive_connections=args.clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        page = (await client.get("/api/images?count=100")).json()
        keys = [image["key"] for image in page["images"]]
        captions = [text for key in keys[:40] for text in (await client.get(f"/api/image/{key}")).json()["captions"]]
        begin = time.perf_counter()
        end = begin + args.seconds

        async def visit(number: int) -> None:
            draw = random.Random(number)
            while time.perf_counter() < end:
                kind = draw.choices(list(MIX), list(MIX.values()))[0]
                asked = time.perf_counter()
                try:
                    wrong = await one(client, kind, draw, keys, captions)
                except Exception as error:  # whatever httpx raises is an answer that was lost
                    wrong = type(error).__name__
                times[kind].append(time.perf_counter() - asked)
                if wrong:
                    lost[f"{kind}: {wrong}"] += 1

        async def watch() -> None:
            while time.perf_counter() < end:
                if time.perf_counter() > begin + args.seconds / 2:
                    memory.append(rss_mib(process))
                await asyncio.sleep(0.5)

        await asyncio.gather(watch(), *(visit(number) for number in range(args.clients)))
        spent = time.perf_counter() - begin
        waiting = (await client.get("/api/health")).json()["waiting"]
    quarter = max(len(memory) // 4, 1)
    every = [value for found in times.values() for value in found]
    return {
        "clients": args.clients, "seconds": round(spent, 1), "requests": len(every), "requests_per_s": round(len(every) / spent, 1),
        "lost": sum(lost.values()), "what_was_lost": dict(lost.most_common(5)), "left_waiting": waiting,
        "milliseconds": {"all": percentiles(every)} | {kind: percentiles(found) for kind, found in times.items() if found},
        "rss_mib": {
            "first": round(statistics.fmean(memory[:quarter]), 1), "last": round(statistics.fmean(memory[-quarter:]), 1),
            "most": round(max(memory), 1),
        },
    }  # fmt: skip


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds below which 50, 95 and 99 % of the answers lie, the slowest, and how many there were."""
    ordered = sorted(seconds)
    found = {f"p{share}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1) for share in (50, 95, 99)}
    return found | {"most": round(1000 * ordered[-1], 1), "count": len(ordered)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    server, address = start(args)
    try:
        return asyncio.run(load(address, server.pid, args))
    finally:
        server.terminate()
        server.wait(30)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--matcher", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=0, help="of the model (otherwise all)")
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=30)
    parser.add_argument("--note", default="", help="about the machine, kept with the row")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    row = measure(args)
    print(json.dumps(row, indent=1))
    if args.output:
        named = {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
        facts = about(argparse.Namespace(**named | {"device": "cpu", "output": None}))
        args.output.write_text(json.dumps({"about": facts, "rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
