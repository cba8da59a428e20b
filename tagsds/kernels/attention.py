"""Attention over packed sequences: kernels for variable lengths where there are some, padded SDPA behind the same call elsewhere.

Shapes: N = tokens of all sequences, P = sequences, A = heads, D = width of a head, L = longest sequence.
Queries may be fewer than keys: the last layer asks only for the positions whose states are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.data.ragged import offsets_of
from tagsds.kernels import choice
from tagsds.kernels.dropout import draw_seed


@dataclass
class Sequences:
    """How a packed stream divides into sequences: lengths int64 [P]; the padded index is built once and shared by all layers."""

    lengths: Tensor
    longest: int
    even: bool  # all of the same length: padding is a reshape

    def __post_init__(self) -> None:
        self._slots: Tensor | None = None
        self._offsets: Tensor | None = None
        self._cumulative: Tensor | None = None

    @staticmethod
    def single(count: int, device: torch.device) -> Sequences:
        """`count` sequences of one position each."""
        return Sequences(torch.ones(count, dtype=torch.int64, device=device), 1, True)

    @staticmethod
    def of(lengths: Tensor) -> Sequences:
        """Asks the device for the longest and the shortest, which waits for it."""
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
    def offsets(self) -> Tensor:
        """int64 [P + 1]: where each sequence begins in the stream."""
        if self._offsets is None:
            self._offsets = offsets_of(self.lengths)
        return self._offsets

    @property
    def cumulative(self) -> Tensor:
        """int32 [P + 1], `cu_seqlens` of the flash kernels."""
        if self._cumulative is None:
            self._cumulative = self.offsets.to(torch.int32)
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


def self_attention(
    packed: Tensor, query: Tensor | None, heads: int, sequences: Sequences, asking: Sequences, dropout: float = 0.0
) -> Tensor:
    """Each sequence attends to itself alone: -> [K, H].

    packed      [N, 3H], queries, keys and values of each position; [N, 2H], keys and values, where queries come apart
    query       [K, H] or None: those of `packed` (K = N)
    sequences   how the N divide into sequences; `asking` divides the K among them
    dropout     of the probabilities
    """
    parts = 3 if query is None else 2
    width = packed.shape[1] // parts // heads
    chosen = choice.attention(packed.device, packed.dtype, width, dropout > 0)
    if chosen == "cpu":
        from tagsds.kernels.cpu.attention import SelfAttention

        seed = draw_seed() if dropout else 0
        out = SelfAttention.apply(packed, query, heads, asking.offsets, sequences.offsets, dropout, seed)
        assert isinstance(out, Tensor)
        return out
    if chosen == "triton" and query is None and len(packed):
        from tagsds.kernels.triton import attention as triton

        return triton.self_attention(packed, heads, sequences, dropout, draw_seed() if dropout else 0).flatten(1)
    *own, key, value = (part.unflatten(-1, (heads, -1)) for part in packed.chunk(parts, dim=-1))
    asked = own[0] if query is None else query.unflatten(-1, (heads, -1))
    if len(asked) == 0:
        return (asked + 0 * (key.sum() + value.sum())).flatten(1)  # nothing asked for: keep the graph whole
    if chosen == "varlen":
        return varlen_attention(asked, key, value, asking, sequences).flatten(1)
    if chosen == "triton":
        from tagsds.kernels.triton import attention as triton

        seed = draw_seed() if dropout else 0
        return triton.attention(asked, key, value, asking, sequences, dropout, seed).flatten(1)
    return padded_attention(asked, key, value, asking, sequences, dropout).flatten(1)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, q_sequences: Sequences, k_sequences: Sequences) -> Tensor:
    """PyTorch's flash attention for variable lengths: query [Nq, A, D], key and value [Nk, A, D] -> [Nq, A, D]."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query, key, value, q_sequences.cumulative, k_sequences.cumulative, q_sequences.longest, k_sequences.longest
    )
    assert isinstance(out, Tensor)
    return out
