"""Pictures decoded ahead of the model by a few threads, and put into batches of one size.

Pictures of unequal size would have to be padded, and what a network computes near an edge depends on the padding beyond it.
So a batch holds pictures whose processed size is the same, and the features of a picture do not depend on its neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Size = TypeVar("Size")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int, window: int) -> Iterator[Result]:
    """function(item) of every item in order, computed by `threads` threads at most `window` items ahead."""
    queue: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for item in items:
            queue.append(pool.submit(function, item))
            if len(queue) > window:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[Item], size_of: Callable[[Item], Size], length: int, held: int) -> Iterator[list[Item]]:
    """Lists of at most `length` items of one size. Where more than `held` items wait for others of their size, the longest
    list goes first, the oldest of equals. What comes out depends on the items' order alone."""
    waiting: dict[Size, list[Item]] = {}
    for item in items:
        size = size_of(item)
        group = waiting.setdefault(size, [])
        group.append(item)
        if len(group) == length:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) > held:
            yield waiting.pop(max(waiting, key=lambda other: len(waiting[other])))
    yield from waiting.values()
