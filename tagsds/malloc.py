"""What the C library does with memory that was freed: keep it for the next step, or give it back to the system. glibc alone is
spoken to; with another C library both do nothing."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of mallopt


@cache
def libc() -> Any:
    """glibc, or None."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.malloc_trim, library.mallopt  # noqa: B018 - looked up here, where another C library has neither
        return library
    except (OSError, AttributeError):
        return None


def keep_freed_memory() -> None:
    """For training on a CPU: keep all freed blocks, large ones too, in one arena. Activations come and go at every step, and giving
    their pages back each time costs a quarter of a small model's step."""
    if libc():
        libc().mallopt(TRIM_THRESHOLD, (1 << 31) - 1)  # never shrink the heap
        libc().mallopt(MMAP_MAX, 0)  # no block apart from the heap
        libc().mallopt(ARENA_MAX, 1)  # backward runs in another thread, whose arena could not hold large blocks


def give_back_freed_memory() -> None:
    """For a server: whole pages that are free, in every arena, go back to the system. Answers of many lengths leave holes between
    the blocks that stay, and with them the process grows for hours although nothing is kept. Milliseconds."""
    if libc():
        libc().malloc_trim(0)
