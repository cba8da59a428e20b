"""Attention over packed sequences: flash kernels for variable lengths on a GPU, padded SDPA behind the same call elsewhere.

Shapes: N = tokens of all sequences, P = sequences, A = heads, D = width of a head, L = longest sequence.
Queries may be fewer than keys: the last layer asks only for the positions whose states are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.data.ragged import offsets_of


@dataclass
class Sequences:
    """How a packed stream divides into sequences: lengths int64 [P]; the padded index is built once and shared by all layers."""

    lengths: Tensor
    longest: int
    even: bool  # all of the same length: padding is a reshape

    def __post_init__(self) -> None:
        self._slots: Tensor | None = None
        self._cumulative: Tensor | None = None

    @staticmethod
    def of(lengths: Tensor) -> Sequences:
        longest, shortest = (int(lengths.max()), int(lengths.min())) if lengths.numel() else (0, 0)
        return Sequences(lengths, longest, longest == shortest)

    @property
    def slots(self) -> Tensor:
        """int64 [N]: where each token stands in the padded [P * L] table."""
        if self._slots is None:
            column = torch.arange(self.longest, device=self.lengths.device)
            self._slots = (column < self.lengths[:, None]).flatten().nonzero().squeeze(1)
        return self._slots

    @property
    def cumulative(self) -> Tensor:
        """int32 [P + 1], `cu_seqlens` of the flash kernels."""
        if self._cumulative is None:
            self._cumulative = offsets_of(self.lengths).to(torch.int32)
        return self._cumulative

    def mask(self) -> Tensor:
        """bool [P, 1, 1, L]: true where a key exists."""
        column = torch.arange(self.longest, device=self.lengths.device)
        return (column < self.lengths[:, None])[:, None, None, :]


class _Pad(torch.autograd.Function):
    """[N, ...] -> [P * L, ...] with zeros between; the gradient is the plain selection (cheaper than index_add)."""

    @staticmethod
    def forward(ctx, x: Tensor, slots: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slots,) = ctx.saved_tensors
        return grad.index_select(0, slots), None, None


class _Unpad(torch.autograd.Function):
    """[P * L, ...] -> [N, ...]; the gradient is a copy, since no row is read twice."""

    @staticmethod
    def forward(ctx, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.rows = x.shape[0]
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (slots,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, slots, grad), None


def pad(x: Tensor, sequences: Sequences) -> Tensor:
    """[N, ...] -> [P, L, ...]."""
    rows = sequences.lengths.numel()
    if not sequences.even:
        x = _Pad.apply(x, sequences.slots, rows * sequences.longest)
    return x.reshape(rows, sequences.longest, *x.shape[1:])


def unpad(x: Tensor, sequences: Sequences) -> Tensor:
    """[P, L, ...] -> [N, ...]."""
    x = x.reshape(-1, *x.shape[2:])
    return x if sequences.even else _Unpad.apply(x, sequences.slots)


def padded_attention(
    query: Tensor, key: Tensor, value: Tensor, q_sequences: Sequences, k_sequences: Sequences, dropout: float = 0.0
) -> Tensor:
    """SDPA on padded copies: query [Nq, A, D], key and value [Nk, A, D] -> [Nq, A, D]. The reference of every kernel."""
    q_PALD = pad(query, q_sequences).transpose(1, 2)
    k_PALD = pad(key, k_sequences).transpose(1, 2)
    v_PALD = pad(value, k_sequences).transpose(1, 2)
    mask = None if k_sequences.even else k_sequences.mask()
    out = F.scaled_dot_product_attention(q_PALD, k_PALD, v_PALD, attn_mask=mask, dropout_p=dropout)
    return unpad(out.transpose(1, 2), q_sequences)


FLASH_WIDTHS = range(8, 257, 8)  # of a head: what PyTorch's variable-length flash attention takes without padding the head


def flash_takes(dtype: torch.dtype, width: int, capability: tuple[int, int]) -> bool:
    """Whether PyTorch's variable-length flash attention runs: half precision, a head `width` that is a multiple of 8 and at most
    256, and compute `capability` 8.0 (A100) or later."""
    return dtype in (torch.float16, torch.bfloat16) and width in FLASH_WIDTHS and capability >= (8, 0)


def flash_runs(query: Tensor) -> bool:
    """Whether `query` [N, A, D] lies on a GPU whose flash kernel takes it."""
    return query.is_cuda and flash_takes(query.dtype, query.shape[-1], torch.cuda.get_device_capability(query.device))


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, q_sequences: Sequences, k_sequences: Sequences, dropout: float = 0.0
) -> Tensor:
    """query [Nq, A, D], key and value [Nk, A, D] -> [Nq, A, D]; each sequence attends to itself alone."""
    if query.shape[0] == 0:
        return query + 0 * (key.sum() + value.sum())  # nothing asked for: keep the graph whole
    if flash_runs(query) and dropout == 0.0:
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(
            query, key, value, q_sequences.cumulative, k_sequences.cumulative, q_sequences.longest, k_sequences.longest
        )
        assert isinstance(out, Tensor)
        return out
    return padded_attention(query, key, value, q_sequences, k_sequences, dropout)
