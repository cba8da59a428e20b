"""The rate of matrix products of this machine, in FLOP a second, at the shapes that a step uses.

On a CPU the best of `torch.mm` and oneDNN's linear product, with and without a packed weight, counts, on a GPU `torch.mm`. A
product with a gradient is timed with its two gradients. `ideal_seconds` divides each product's operations by its own rate, so that
the rate of a step is weighted by its operations; attention's products count at the mean rate of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tagsds.estimate.work import Sizes
from tagsds.kernels import choice
from tagsds.kernels.linear import pack, product
from tests.bench.operations import Call, flop_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Product:
    """x [rows, inputs] times the transpose of a weight [outputs, inputs]."""

    precision: str
    gradient: bool
    rows: int
    inputs: int
    outputs: int


def products_of(calls: list[Call], sizes: Sizes, feature_dim: int) -> dict[Product, float]:
    """The linear products of the calls and their forward FLOP. Calls are chunks of a similar size: their mean stands for them."""
    H, F, layers = sizes.hidden, sizes.intermediate, sizes.layers
    found: dict[Product, float] = {}
    for precision, gradient in sorted({(call.precision, call.gradient) for call in calls}):
        some = [call.stream for call in calls if (call.precision, call.gradient) == (precision, gradient)]
        passes = [stream for stream in some if stream.tokens]
        full, kept = layers - 1, 1
        wanted = [
            ([s.regions for s in some if s.regions], feature_dim, H, 1.0),
            ([s.rows for s in some if s.rows], H, 3 * H, 1.0),
            ([s.tokens for s in passes], H, 3 * H, max(0.0, full - 1 / 3)),  # the last layer: two thirds of q, k, v
            ([s.tokens for s in passes], H, H, full),
            ([s.tokens for s in passes], H, F, full),
            ([s.tokens for s in passes], F, H, full),
            ([s.keep for s in passes], H, H, kept * (2 if layers > 1 else 1)),  # q and the output of the last layer
            ([s.keep for s in passes], H, F, kept),
            ([s.keep for s in passes], F, H, kept),
            ([s.words for s in some if s.words], H, H, 1.0),
            ([s.words for s in some if s.words], H, sizes.vocabulary, 1.0),
        ]
        for rows, inputs, outputs, times in wanted:
            if rows and times:
                weighted = sum(n * n for n in rows) / sum(rows)  # a chunk counts by its rows
                product = Product(precision, gradient, two_digits(weighted), inputs, outputs)
                found[product] = found.get(product, 0.0) + times * sum(rows) * 2 * inputs * outputs
    return found


def two_digits(count: float) -> int:
    """At least one; rows of nearly the same size are timed once."""
    return max(1, int(float(f"{count:.1e}")))


@dataclass
class Rates:
    """Measured rates of a device; each product is timed once. `least_s`: how long each candidate is repeated."""

    device: torch.device
    least_s: float = 0.05
    measured: dict[Product, float] = field(default_factory=dict)

    def of(self, product: Product) -> float:
        """FLOP a second of the product, with its gradients where it has one."""
        if product not in self.measured:
            self.measured[product] = self._measure(product)
        return self.measured[product]

    def _measure(self, p: Product) -> float:
        dtype = DTYPES[p.precision]
        x = torch.randn(p.rows, p.inputs, device=self.device, dtype=dtype)
        weight = torch.randn(p.outputs, p.inputs, device=self.device, dtype=dtype)
        seconds = self._best(x, weight)
        flop = 2.0 * p.rows * p.inputs * p.outputs
        if p.gradient:
            grad = torch.randn(p.rows, p.outputs, device=self.device, dtype=dtype)
            seconds += self._best(grad, weight.t().contiguous()) + self._time(lambda: torch.mm(grad.t(), x))
            flop *= 3
        return flop / seconds

    def _best(self, x: Tensor, weight: Tensor) -> float:
        """Seconds of x times the transpose of `weight`."""
        ways: list[Callable[[], Tensor]] = [lambda: torch.mm(x, weight.t())]
        if self.device.type == "cpu" and choice.has_onednn(weight.dtype):
            packed = pack(weight)
            ways += [lambda: product(x, weight, None), lambda: product(x, weight, None, packed)]
        return min(self._time(way) for way in ways)

    @torch.no_grad()
    def _time(self, run: Callable[[], Tensor]) -> float:
        """The shortest of at least three runs."""
        run()
        times: list[float] = []
        while len(times) < 3 or sum(times) < self.least_s:
            times.append(timed(run, self.device))
        return min(times)

    def ideal_seconds(self, calls: list[Call], sizes: Sizes, feature_dim: int) -> float:
        """How long the operations of the calls take at the measured rates."""
        total = 0.0
        for precision in {call.precision for call in calls}:
            for gradient in (False, True):
                some = [call for call in calls if (call.precision, call.gradient) == (precision, gradient)]
                products = products_of(some, sizes, feature_dim)
                if products:
                    seconds = sum((3 if gradient else 1) * flop / self.of(product) for product, flop in products.items())
                    linear = (3 if gradient else 1) * sum(products.values())
                    total += seconds * flop_of(some, sizes, feature_dim) / linear
        return total


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run; a GPU is waited for, and runs often enough that its clock does not matter."""
    times = 1
    if device.type == "cuda":
        times = 20
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / times
