"""Bytes of the tensors that are alive, counted exactly: for tests and tables of memory on a CPU, where no allocator tells them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make while the mode is on, what autograd keeps included. A storage counts from the
    operator that returns it until it is freed; what was there before the mode counts once an operator returns a view of it,
    unless `forget` names it.

    live   bytes now
    peak   largest `live` since `restart`
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def restart(self) -> None:
        """Let the peak begin at what is alive now."""
        self.peak = self.live

    def forget(self, *tensors: torch.Tensor) -> None:
        """Do not count these tensors, made before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self._count(value.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is storage:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed(_: Any, key: int = key, size: int = size) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
