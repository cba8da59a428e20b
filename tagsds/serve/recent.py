"""What was used last stays in memory, up to a size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Values by key; the one unused for longest leaves first.

    most    sum of sizes that is kept
    size    of a value; a value above `most` is not kept
    """

    def __init__(self, most: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self.most, self.size, self.total = most, size, 0
        self._values: OrderedDict[object, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: object, make: Callable[[], V]) -> V:
        """The value of the key; made where it is not there, which several threads may do at once."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values and self.size(value) <= self.most:
                self._values[key] = value
                self.total += self.size(value)
                while self.total > self.most:
                    self.total -= self.size(self._values.popitem(last=False)[1])
        return value

    def __len__(self) -> int:
        return len(self._values)
