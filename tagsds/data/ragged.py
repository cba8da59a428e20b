"""Rows of uneven length, stored one after another: the only container for tokens and regions, so nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Ragged:
    """`values` [sum(lengths), ...] holds row 0, then row 1, ...; `lengths` int64 [N]."""

    values: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        self._offsets: Tensor | None = None

    @property
    def offsets(self) -> Tensor:
        """int64 [N + 1]: row i is values[offsets[i]:offsets[i + 1]]."""
        if self._offsets is None:
            self._offsets = offsets_of(self.lengths)
        return self._offsets

    def __len__(self) -> int:
        return self.lengths.numel()

    def __getitem__(self, row: int) -> Tensor:
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def select(self, rows: Tensor) -> Ragged:
        """The given rows (int64 [M], repeats allowed), in that order."""
        lengths = self.lengths[rows]
        return Ragged(self.values[positions_of(self.offsets[rows], lengths)], lengths)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Ragged:
        return Ragged(self.values.to(device=device, dtype=dtype), self.lengths.to(device))

    def pad(self, value: float, length: int | None = None) -> Tensor:
        """[N, length or max(lengths), ...] with `value` behind each row."""
        width = int(self.lengths.max()) if length is None else length
        out = self.values.new_full((len(self), width, *self.values.shape[1:]), value)
        columns = torch.arange(width, device=self.values.device)
        out[columns < self.lengths[:, None]] = self.values
        return out

    @staticmethod
    def from_padded(padded: Tensor, lengths: Tensor) -> Ragged:
        """Drop what lies behind each row's length: padded [N, L, ...], lengths [N]."""
        keep = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        return Ragged(padded[keep], lengths)

    @staticmethod
    def from_rows(rows: Sequence[Tensor]) -> Ragged:
        return Ragged(torch.cat(list(rows)), torch.tensor([len(row) for row in rows], dtype=torch.int64))

    @staticmethod
    def cat(parts: Sequence[Ragged]) -> Ragged:
        return Ragged(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))


def offsets_of(lengths: Tensor) -> Tensor:
    """int64 [N] -> int64 [N + 1], the running sum with a leading zero."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def positions_of(starts: Tensor, lengths: Tensor, total: int | None = None) -> Tensor:
    """start_0, start_0 + 1, ... (length_0 of them), start_1, ...: int64 [sum(lengths)]. `total` is that sum where it is known
    already: else the device is asked for it, and waited for."""
    ends = lengths.cumsum(0)
    if total is None:
        total = int(ends[-1]) if lengths.numel() else 0
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return shift + torch.arange(total, device=lengths.device)
