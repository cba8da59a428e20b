"""Attention between the fragments of one side and those of the other, from their dot products alone.

Shapes: Q queries, K context fragments; what stands before them is free and broadcasts: [I, C, Q, K] for all pairs of images
and captions, [P, Q, K] for given pairs. In t2i the queries are words and the context is regions, in i2t the other way round.

A query q attends to the context c_1 .. c_K with weights a and is held against the attended vector v = sum_k a_k c_k. Of v only
its product with q and its length are needed, and both follow from dot products:

    <q, v> = sum_k a_k <q, c_k>        |v|^2 = sum_jk a_j a_k <c_j, c_k> = a' G a

so v, [..., Q, E], is never built: G = C C' is [K, K] and computed once per image or caption, not once per pair.

Where a fragment is padding its vector is zero, hence its dot products are 0: that is taken for granted of `dots` and `gram`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8  # least length by which a vector is divided
TIE = 1e-5  # relative difference up to which weights count as alike: what float32 leaves of sums over 100 fragments


def at_least_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 become float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unit(x: Tensor) -> Tensor:
    """l2-normalise the last dimension, in float32 or better; a zero vector stays zero."""
    return F.normalize(at_least_float32(x), dim=-1, eps=EPS)


def attend(dots: Tensor, context: Tensor, sharpness: float) -> Tensor:
    """Weight of each context fragment for each query (SCAN, arXiv 1803.08024, section 3.1): [..., Q, K], rows sum to 1.

        a_qk = softmax_k(sharpness * x_qk),   x_qk = LeakyReLU(s_qk) / |LeakyReLU(s_.k)| over the queries

    The released code has this leaky form (slope 0.1) in place of the paper's [s]+.

    dots     float [..., Q, K], s: products of unit vectors
    context  bool [..., K]: true where a fragment exists, false in padding. A row without any context spreads its weight over
             the padding, whose fragments are zero.
    """
    x = F.leaky_relu(dots, 0.1)
    # clamped before the root, whose slope at 0 is infinite
    scale = sharpness * x.square().sum(dim=-2, keepdim=True).clamp(min=EPS * EPS).rsqrt()
    return (x * scale).masked_fill(~context[..., None, :], torch.finfo(x.dtype).min).softmax(dim=-1)


def focus(weights: Tensor, context: Tensor, focal: str) -> Tensor:
    """Weights with zeros where the fragment is irrelevant to the query (BFAN, arXiv 1909.11416, section 3.2): [..., Q, K].

        F_k = sum_j g_j (a_k - a_j),   g = 1 ("equal") or sqrt(a) ("prob");   kept where F_k > 0

    Not renormalised: the cosine that follows does not depend on the length of the attended vector. No gradient flows
    through the choice. Where all weights are alike (a single fragment; all words seen from an image of one region) none
    stands out and all are kept: F is 0 there, and its rounded sign would choose at random.
    """
    with torch.no_grad():
        vote = context[..., None, :].to(weights.dtype)
        if focal == "prob":
            vote = vote * weights.sqrt()
        keep = weights * vote.sum(dim=-1, keepdim=True) > (1 + TIE) * (weights * vote).sum(dim=-1, keepdim=True)
        keep = keep | ~keep.any(dim=-1, keepdim=True)
    return weights * keep


def cosine(dots: Tensor, weights: Tensor, gram: Tensor) -> Tensor:
    """Cosine of each query with the vector it attends to: [..., Q].

    dots, weights   float [..., Q, K]; the queries are unit vectors
    gram            float [..., K, K], G of the context
    """
    inner = (weights * dots).sum(dim=-1)
    # einsum folds what `gram` does not have (a dimension of size 1) into the rows of one product, without expanding G
    square = (torch.einsum("...qk,...kj->...qj", weights, gram) * weights).sum(dim=-1)
    return inner * square.clamp(min=EPS * EPS).rsqrt()


def mean(x: Tensor, real: Tensor) -> Tensor:
    """Mean over the real fragments: x [..., Q], real bool [..., Q] -> [...]; 0 where there is none."""
    return torch.where(real, x, 0.0).sum(dim=-1) / real.sum(dim=-1).clamp(min=1)


def log_sum_exp(x: Tensor, real: Tensor, sharpness: float) -> Tensor:
    """log(sum exp(sharpness x)) / sharpness over the real fragments, a soft maximum: x [..., Q], real bool [..., Q] -> [...]."""
    return (sharpness * x).masked_fill(~real, torch.finfo(x.dtype).min).logsumexp(dim=-1) / sharpness
