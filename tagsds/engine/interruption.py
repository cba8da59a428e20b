"""Wishes that a run should save and leave: signals, a time limit, a file.

A rank only notes them. After each step the ranks tell each other (`World.any_of`), so that all leave after the same step.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tagsds.ranks import World

TO_BE_CONTINUED = 75
"""exit status of a run that has saved and left before its end: EX_TEMPFAIL of sysexits.h, "try again later". The same command with
--resume goes on."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP = "STOP"


class Interruption:
    """From its construction on, SIGTERM and SIGUSR1 end no process any more. `wanted` says whether somebody wishes the end, and
    `why` in words.

    limit_minutes: from the construction on; 0: none. Measured on a clock that no one sets.
    """

    def __init__(self, output: Path, world: World, limit_minutes: float = 0.0) -> None:
        self.why = ""
        self.file, self.world = output / STOP, world
        self.until = time.monotonic() + 60 * limit_minutes if limit_minutes else None
        self.limit = limit_minutes
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if world.is_main:
            self.file.unlink(missing_ok=True)  # it ended the run before this one

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.why:
            self.why = f"{signal.Signals(number).name} came"
            print(f"{self.why}: saving after this step, then leaving", file=sys.stderr, flush=True)

    def wanted(self) -> bool:
        if not self.why and self.until is not None and time.monotonic() >= self.until:
            self.why = f"{self.limit:g} minutes are over (--time-limit)"
        if not self.why and self.world.is_main and self.file.exists():
            self.why = f"{self.file} is there"
        return bool(self.why)

    def close(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
