"""A rank that dies or hangs ends the run on all ranks within a stated time, and says first where it was.

Launchers end the ranks of their own machine when one dies. What they do not see: a rank on another machine that is gone while the
others wait for it in a collective, and a rank that lives and does nothing (a file system that no longer answers, a deadlock).
Each rank has a thread that tells rank 0 through the process group's store that it lives, and what its work is at.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from typing import Any

import torch.distributed as dist

from tagsds.ranks import World

HANGS = 70
"""exit status of a run that was ended for a rank that is dead or hangs: EX_SOFTWARE of sysexits.h"""
PULSE_S = 2.0
DEAD_S = 60.0  # without a pulse
LAST_WORDS_S = 6.0  # for the culprit, before the others end
SILENT = {"pulse": 0, "marks": 0, "place": "its start", "long": True, "host": "an unknown machine", "pid": "unknown"}
"""a rank that has not said anything yet"""


class Watchdog:
    """`at(place)` marks progress. With no mark on some rank for `minutes` (of the loop's steps) or `long_minutes` (of work of
    unknown length: mining, validation, export, loading) all ranks end with status HANGS. 0 minutes: never."""

    def __init__(self, world: World, minutes: float, long_minutes: float) -> None:
        self.world, self.limits = world, (60 * minutes, 60 * long_minutes)
        self.place, self.marks, self.long = "start", 0, True
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        if minutes and world.size > 1:
            store = dist.distributed_c10d._get_default_store()
            self.store = dist.PrefixStore("tagsds-watchdog", store)
            self._answered = time.monotonic()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
            threading.Thread(target=self._watch_store, name="watchdog of the store", daemon=True).start()

    def at(self, place: str, long: bool = False) -> None:
        """The work has come to `place`."""
        self.place, self.long = place, long
        self.marks += 1

    def close(self) -> None:
        """The run is at its end: ranks may leave one after the other."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        seen: dict[int, tuple[Any, float]] = {}
        marked: dict[int, tuple[Any, float]] = {}
        pulse = 0
        while not self._end.wait(PULSE_S):
            pulse += 1
            try:
                mine = {"pulse": pulse, "marks": self.marks, "place": self.place, "long": self.long, "host": os.uname().nodename,
                        "pid": os.getpid()}  # fmt: skip
                self.store.set(f"rank{self.world.rank}", json.dumps(mine))
                verdict = self.store.get("verdict").decode() if self.store.check(["verdict"]) else ""
                if not verdict:
                    others = range(self.world.size) if self.world.is_main else [0]
                    verdict = self._judge(self._read(others), seen, marked)
                    if verdict:
                        self.store.set("verdict", verdict)
            except Exception:  # the store is with rank 0, or with the launcher
                if self._end.wait(DEAD_S / 10):
                    return
                verdict = json.dumps([0, "rank 0 is gone, or its machine no longer answers"])
            self._answered = time.monotonic()
            if verdict:
                self._leave(*json.loads(verdict))

    def _watch_store(self) -> None:
        """The store is in the process of rank 0, or of torchrun: one that is frozen leaves questions open for good."""
        while not self._end.wait(PULSE_S):
            if time.monotonic() - self._answered > DEAD_S:
                self._leave(0, f"rank 0, or the launcher, has not answered for {DEAD_S:.0f} s")

    def _read(self, ranks: Any) -> dict[int, dict[str, Any]]:
        found = {}
        for rank in ranks:
            key = f"rank{rank}"
            found[rank] = json.loads(self.store.get(key)) if self.store.check([key]) else SILENT
        return found

    def _judge(self, states: dict[int, dict[str, Any]], seen: dict, marked: dict) -> str:
        """[rank, sentence] as JSON for a rank that is dead or hangs, "" for none. `seen` and `marked`: rank -> (last pulse or mark,
        when it changed), on this rank's clock."""
        now = time.monotonic()
        for rank, state in states.items():
            for known, key in ((seen, "pulse"), (marked, "marks")):
                if known.get(rank, (None, 0.0))[0] != state[key]:
                    known[rank] = (state[key], now)
        who = "rank {} (process {} on {})".format
        dead = [rank for rank in states if now - seen[rank][1] > DEAD_S]
        if dead:
            state = states[dead[0]]
            where = who(dead[0], state["pid"], state["host"])
            return json.dumps([dead[0], f"{where} has not answered for {DEAD_S:.0f} s; it was at: {state['place']}"])
        hung = [r for r, s in states.items() if self.limits[s["long"]] and now - marked[r][1] > self.limits[s["long"]]]
        if hung and self.world.is_main:
            last = min(states, key=lambda rank: (states[rank]["marks"], rank))  # the others have come further, and wait for it
            state, quiet = states[last], now - marked[last][1]
            where = who(last, state["pid"], state["host"])
            return json.dumps([last, f"{where} has made no progress for {quiet:.0f} s; it is at: {state['place']}"])
        return ""

    def _leave(self, culprit: int, sentence: str) -> None:
        """Say it, the culprit first, with the place of each of its threads; then end, whatever the main thread waits for."""
        if self.world.rank == culprit:
            print(f"error: {sentence}; all ranks end. What each thread was doing:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            time.sleep(2 * LAST_WORDS_S)  # the others end first: they would fail at a collective when this one is gone
        else:
            time.sleep(LAST_WORDS_S)
            if self.world.is_main:
                print(f"error: {sentence}; all ranks end.", file=sys.stderr, flush=True)
        os._exit(HANGS)
