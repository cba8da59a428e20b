"""The k highest scores of rows or columns on a CPU (select.cpp)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tagsds.kernels.cpu.build import at, library

Kept = tuple[Tensor, Tensor, Tensor, Tensor]


class Tops(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("scores", "numbers", "filled", "bar")),
        *((name, ctypes.c_int64) for name in ("k", "room")),
    )


def offer(kept: Kept, k: int, block: Tensor, first: int, owners: tuple[Tensor, Tensor], by_column: bool) -> None:
    """`tagsds.kernels.select.Highest.offer`, `kept` being scores, numbers, filled and bar."""
    block = block.contiguous()
    mine, theirs = (side.to(torch.int32).contiguous() for side in owners)
    rows, columns = block.shape
    assert (len(mine), len(theirs)) == (rows, columns) and len(kept[0]) == (columns if by_column else rows)
    tops = _tops(kept, k)
    library().select_offer(
        ctypes.byref(tops), at(block), ctypes.c_int64(rows), ctypes.c_int64(columns), ctypes.c_int32(first), at(mine),
        at(theirs), int(by_column),
    )  # fmt: skip


def settle(kept: Kept, k: int) -> None:
    """`tagsds.kernels.select.Highest.settled`."""
    library().select_settle(ctypes.byref(_tops(kept, k)), ctypes.c_int64(len(kept[0])))


def _tops(kept: Kept, k: int) -> Tops:
    room = kept[0].shape[1]
    assert all(field.is_contiguous() for field in kept) and room >= k + 16
    return Tops(*(field.data_ptr() for field in kept), k, room)
