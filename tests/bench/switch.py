"""Each kernel switched to its reference in torch: what its own implementation brings.

The operations are those of `tagsds.kernels.choice`; a package without that module has references only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

try:
    from tagsds.kernels.choice import forced, names
except ImportError:

    def names() -> Iterable[str]:
        return ()

    def forced(kinds: dict[str, str]) -> AbstractContextManager[None]:
        return nullcontext()


def references(operations: Iterable[str] | None = None) -> AbstractContextManager[None]:
    """Inside, the given operations (all of them) take their reference."""
    return forced(dict.fromkeys(names() if operations is None else operations, "reference"))


def switches() -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """{row's name: context} for each kernel alone and for all at once; empty where there are none."""
    found = {f"kernel {name}: reference": (lambda name=name: references([name])) for name in names()}
    return found | ({"kernels: all references": references} if found else {})
