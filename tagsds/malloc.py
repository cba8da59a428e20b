"""What the C library does with memory that was freed: keep it for the next step, or give it back to the system. glibc alone is
spoken to; with another C library both do nothing."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8  # of mallopt
LARGE = 1 << 30  # bytes of holes from which on they are given back


class Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2 returns; `fordblks` are the bytes that are free."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


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
    their pages back each time costs a quarter of a small model's step. `give_back_large_holes` now and then, beside it."""
    if libc():
        libc().mallopt(TRIM_THRESHOLD, (1 << 31) - 1)  # never shrink the heap
        libc().mallopt(MMAP_MAX, 0)  # no block apart from the heap
        libc().mallopt(ARENA_MAX, 1)  # backward runs in another thread, whose arena could not hold large blocks


def give_back_freed_memory() -> None:
    """For a server: whole pages that are free, in every arena, go back to the system. Answers of many lengths leave holes between
    the blocks that stay, and with them the process grows for hours although nothing is kept. Milliseconds."""
    if libc():
        libc().malloc_trim(0)


def give_back_large_holes() -> None:
    """For a long training that keeps its freed blocks: steps of many sizes leave ever more holes between them. Where more than a
    GiB lies free, whole pages of it go back to the system, and the next steps fault in what they need of it."""
    if libc() and hasattr(libc(), "mallinfo2"):  # since glibc 2.33
        libc().mallinfo2.restype = Mallinfo2
        if libc().mallinfo2().fordblks > LARGE:
            libc().malloc_trim(0)
