"""Damaged files by the thousand, each through the function by which the commands read it.

    python -m tests.fuzz.run --count 10000 --seed 0                     a table: format x outcome
    python -m tests.fuzz.run --seed 0 --replay 1234                     one case again, with its traceback
    python -m tests.fuzz.run --count 500 --only shards --failures DIR   one format; failing cases are written to DIR

Outcomes that are right: "sentence" (UserError), "equal" (the undamaged value), "legal" (another value, which is one that the format
allows and no checksum speaks of). Failures: "changed" (another value although a checksum covers the file), "illegal" (a value that
the format does not allow), "traceback", "hang" (more than 10 s), "memory" (more than 1 GiB beyond the process before), "crash".

The cases run in a child process, which is started anew where it dies or hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RIGHT = ("sentence", "equal", "legal")
FAILURES = ("changed", "illegal", "traceback", "hang", "memory", "crash")
SECONDS = 10  # of the processor's time, for a case: a busy machine makes no failure
MEMORY_BYTES = 1 << 30  # of address space, beyond what the process has before the case
SILENCE_S = 240  # after which a child is taken for one that waits, or is hung in native code


class Hang(BaseException):
    """The alarm: no loader catches it."""


@dataclass
class Outcome:
    """What a case led to. `text`: the sentence or the traceback."""

    case: int
    target: str
    file: str
    damage: str
    kind: str
    text: str = ""


@dataclass
class Bench:
    """The clean folders of all targets, made when they are first needed, and the copy in which a case happens."""

    place: Path
    expected: dict[str, str] = field(default_factory=dict)

    def clean(self, target: Any) -> Path:
        folder = self.place / re.sub(r"\W+", "-", target.name) / "clean"
        if target.name not in self.expected:
            with quiet():
                target.make(folder)
                copy = self.copy(folder)
                self.expected[target.name] = digest_of(target, copy)
        return folder

    def copy(self, folder: Path) -> Path:
        copy = folder.parent / "case"
        shutil.rmtree(copy, ignore_errors=True)
        return shutil.copytree(folder, copy)


def digest_of(target: Any, folder: Path) -> str:
    from tests.fuzz.digest import digest

    return digest(target.load(folder))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what loaders print and warn of."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """No more than MEMORY_BYTES and SECONDS from here."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out somewhere behind an exception, also where a loader made a sentence of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "not enough memory" in str(error):
            return "parser" not in str(error)
        error = error.__cause__ or error.__context__
    return False


def is_sentence(text: str) -> bool:
    return "\n" not in text and text.endswith((".", "?")) and len(text) < 1500


def run_case(bench: Bench, seed: int, number: int, only: str, show: bool = False) -> Outcome:
    """Case `number`: draw a target, one of its files and a damage; load; judge."""
    from tests.fuzz import damage
    from tests.fuzz.targets import TARGETS

    rng = random.Random(f"{seed}/{number}")
    drawn = [target for target in TARGETS if only in target.name for _ in range(target.weight)]
    target = rng.choice(drawn)
    folder = bench.copy(bench.clean(target))
    files = sorted({path for pattern in target.damaged for path in folder.glob(pattern) if path.is_file()})
    path = rng.choice(files)
    others = [one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file() and one != path][:20]
    others += [b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x80\x04.", b"{}", b"[]", b"null", b"#!/bin/sh\n"]
    kind = damage.choose(rng, path.name)
    found = kind(rng, path.read_bytes(), others)
    if found is None:
        path.unlink()
    else:
        path.write_bytes(found)
    if target.reseal is not None:
        with contextlib.suppress(Exception):  # of a manifest that was itself damaged
            target.reseal(folder, path.name)
    outcome = Outcome(number, target.name, str(path.relative_to(folder)), kind.__name__, "")
    try:
        with quiet(), bounded():
            value = digest_of(target, folder)
        outcome.kind = "equal" if value == bench.expected[target.name] else "changed" if target.guarded else "legal"
    except Hang:
        outcome.kind, outcome.text = "hang", traceback.format_exc()
    except BaseException as error:
        from tagsds.errors import UserError

        outcome.text = str(error)
        if out_of_memory(error):
            outcome.kind = "memory"
        elif isinstance(error, UserError) and is_sentence(str(error)):
            outcome.kind = "sentence"
        else:
            outcome.kind = "illegal" if isinstance(error, AssertionError) else "traceback"
        if outcome.kind != "sentence" or show:
            outcome.text = traceback.format_exc()
    return outcome


def worker(options: argparse.Namespace) -> None:
    """Run cases start..count - 1; a line of JSON at the beginning and at the end of each."""
    signal.signal(signal.SIGPROF, alarmed)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what native code prints goes elsewhere
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        bench = Bench(Path(place))
        for number in range(options.start, options.count):
            print(json.dumps({"begin": number}), file=out)
            outcome = run_case(bench, options.seed, number, options.only)
            print(json.dumps({"end": vars(outcome)}), file=out)
            if options.failures and outcome.kind in FAILURES:
                keep(options.failures, bench, outcome)


def alarmed(*_: object) -> None:
    raise Hang(f"more than {SECONDS} s")


def keep(folder: Path, bench: Bench, outcome: Outcome) -> None:
    """The damaged file and what came of it, for a closer look."""
    place = folder / f"case-{outcome.case}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "outcome.json").write_text(json.dumps(vars(outcome), indent=1))
    (place / "traceback.txt").write_text(outcome.text)
    for copy in bench.place.glob(f"*/case/{outcome.file}"):
        if copy.parent.parent.exists():
            shutil.copy(copy, place / copy.name)


def run_all(options: argparse.Namespace) -> list[Outcome]:
    """All cases, in as many child processes as it takes."""
    outcomes: list[Outcome] = []
    start = options.start
    while start < options.count:
        arguments = ["--worker", "--start", start, "--count", options.count, "--seed", options.seed, "--only", options.only]
        arguments += ["--failures", options.failures] if options.failures else []
        command = [sys.executable, "-m", "tests.fuzz.run", *map(str, arguments)]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        assert child.stdout is not None
        running, buffer = start, b""
        try:
            while start < options.count:
                if not select.select([child.stdout], [], [], SILENCE_S)[0]:
                    child.kill()
                    outcomes.append(Outcome(running, "?", "?", "?", "hang", f"nothing for {SILENCE_S} s"))
                    start = running + 1
                    break
                part = os.read(child.stdout.fileno(), 1 << 16)
                if not part:
                    outcomes.append(Outcome(running, "?", "?", "?", "crash", f"the process ended with {child.wait()}"))
                    start = running + 1
                    break
                *lines, buffer = (buffer + part).split(b"\n")
                for line in map(json.loads, lines):
                    if "begin" in line:
                        running = line["begin"]
                    else:
                        outcomes.append(Outcome(**line["end"]))
                        start = outcomes[-1].case + 1
        finally:
            child.kill() if start < options.count else None
            child.wait()
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """A row a format, in Markdown."""
    counts: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault(outcome.target, Counter())[outcome.kind] += 1
    kinds = [*RIGHT, *FAILURES]
    rows = [["format", "cases", *kinds], ["---"] * (len(kinds) + 2)]
    total: Counter[str] = sum(counts.values(), Counter())
    for name, of in [*sorted(counts.items()), ("**all**", total)]:
        rows.append([name, str(of.total()), *(str(of[kind]) for kind in kinds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="first case")
    parser.add_argument("--only", default="", help="part of a format's name")
    parser.add_argument("--failures", type=Path, help="folder for the failing cases")
    parser.add_argument("--replay", type=int, help="one case, with its traceback")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.worker:
        return worker(options)
    if options.replay is not None:
        signal.signal(signal.SIGPROF, alarmed)
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            outcome = run_case(Bench(Path(place)), options.seed, options.replay, options.only, show=True)
        print(*(f"{name}: {value}" for name, value in vars(outcome).items()), sep="\n")
        return None
    begin = time.perf_counter()
    outcomes = run_all(options)
    print(table(outcomes))
    print(f"\nseed {options.seed}, {len(outcomes)} cases in {time.perf_counter() - begin:.0f} s")
    bad = [outcome for outcome in outcomes if outcome.kind in FAILURES]
    for outcome in bad[:40]:
        last = outcome.text.strip().splitlines()[-1:] or [""]
        print(f"case {outcome.case}: {outcome.kind}: {outcome.target}, {outcome.file}, {outcome.damage}: {last[0][:200]}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
