"""One exception for what the user can mend, and the function that prints it without a traceback."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input: one sentence that names the file, the key and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known name, or the list of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}."


def first_line(error: BaseException) -> str:
    """What an exception of a library says, cut to fit into a sentence."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip().rstrip(".:")[:200] if lines else "") or type(error).__name__


def reason(error: BaseException) -> str:
    """Why something could not be written or read, in the system's words ("No space left on device") where a library has wrapped
    them in an exception of its own."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return first_line(error)


def command(main: Callable[[], object]) -> Callable[[], None]:
    """Wrap a console command: a UserError ends it with its sentence on stderr and exit status 2."""

    def run() -> None:
        try:
            main()
        except UserError as error:
            if int(os.environ.get("RANK", 0)):
                time.sleep(2)  # rank 0 says the same and the launcher ends all; only what went wrong here alone is printed
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)

    return run


def check_whole(options: argparse.Namespace, *names: str) -> None:
    """UserError for an option of a command that is given and below 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give a whole number of at least 1.")
