"""How fast the kernels of tagsds/kernels/triton are, beside torch and the libraries that do the same.

    python tests/bench/kernels.py [--device cuda] [--repeats 50] [--output kernels.json]

Sizes are those of TAGS-DC's base model: 400 pairs of 20 to 150 tokens, 12 heads of 64, a vocabulary of 28,996. `--device cpu` runs
tiny sizes with what a CPU has, to exercise the script; its times mean nothing. Each row: operation, implementation, milliseconds
(median), and TFLOP/s of the products or GB/s of the fewest bytes that the operation can move.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

from tagsds.kernels import sample as reference
from tagsds.kernels.attention import Sequences, padded_attention
from tagsds.kernels.triton import runs_on

Call = Callable[[], object]


@dataclass
class Work:
    """What one call does: `flops` of products, `bytes` that it must move."""

    operation: str
    implementation: str
    call: Call
    flops: float = 0
    bytes: float = 0


@dataclass
class Row:
    operation: str
    implementation: str
    milliseconds: float
    tflops: float | None
    gigabytes_per_second: float | None


@dataclass
class Sizes:
    pairs: int = 400
    shortest: int = 20
    longest: int = 150
    heads: int = 12
    width: int = 64
    positions: int = 2000
    vocabulary: int = 28_996
    draws: int = 20


TINY = Sizes(pairs=6, shortest=3, longest=9, heads=2, width=16, positions=7, vocabulary=300, draws=3)


def both_ways(function: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> Call:
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def attention_work(device: torch.device, sizes: Sizes, dropout: float) -> Iterator[Work]:
    """Forward, and forward with backward: 4 and 14 L^2 D flops for each sequence and head (flash recomputes one product)."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(sizes.shortest, sizes.longest + 1, (sizes.pairs,), generator=generator)
    sequences = Sequences.of(lengths.to(device))
    shape = (int(lengths.sum()), 3, sizes.heads, sizes.width)
    qkv = torch.randn(shape, generator=generator).to(device, torch.bfloat16).requires_grad_()
    grad = torch.randn(shape[0], *shape[2:], generator=generator).to(device, torch.bfloat16)
    square = float(lengths.double().square().sum()) * sizes.heads * sizes.width
    moved = 2.0 * qkv.numel() * 4 / 3
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "torch: SDPA on padded copies": lambda x: padded_attention(*x.unbind(1), sequences, sequences, dropout)
    }
    if runs_on(qkv):
        from tagsds.kernels.triton.attention import self_attention

        ways["triton"] = lambda x: self_attention(x.flatten(1), sizes.heads, sequences, dropout, 5)
    if qkv.is_cuda and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        around = (sequences.cumulative, sequences.cumulative, sequences.longest, sequences.longest)
        ways["torch: varlen_attn (flash)"] = lambda x: varlen_attn(*x.unbind(1), *around)  # type: ignore[return-value]
    for name, function in ways.items():
        plain = qkv.detach()
        yield Work(f"attention, dropout {dropout}, forward", name, lambda f=function, x=plain: f(x), 4 * square, moved)
        call = both_ways(function, [qkv], grad)
        yield Work(f"attention, dropout {dropout}, forward and backward", name, call, 14 * square, 3.5 * moved)


def add_norm_work(device: torch.device, sizes: Sizes) -> Iterator[Work]:
    rows, width = sizes.pairs * (sizes.shortest + sizes.longest) // 2, sizes.heads * sizes.width
    generator = torch.Generator().manual_seed(0)
    x, residual, grad = (torch.randn(rows, width, generator=generator).to(device, torch.bfloat16) for _ in range(3))
    weight, bias = torch.ones(width, device=device), torch.zeros(width, device=device)
    leaves = [y.requires_grad_() for y in (x, residual, weight, bias)]

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(residual + F.dropout(x, 0.1), (width,), weight.to(x.dtype), bias.to(x.dtype), 1e-12)

    ways: dict[str, Callable[..., Tensor]] = {"torch: dropout, add, layer_norm": plain}
    if runs_on(x):
        from tagsds.kernels.triton.add_norm import add_norm

        ways["triton"] = lambda *given: add_norm(*given, 1e-12, 0.1, 5)
    for name, function in ways.items():
        apart = [y.detach() for y in leaves]
        call = both_ways(function, leaves, grad)
        yield Work("add_norm, forward", name, lambda f=function, given=apart: f(*given), bytes=3 * 2.0 * rows * width)
        yield Work("add_norm, forward and backward", name, call, bytes=8 * 2.0 * rows * width)


def sample_work(device: torch.device, sizes: Sizes) -> Iterator[Work]:
    width = sizes.heads * sizes.width
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(sizes.positions, width, generator=generator).to(device, torch.bfloat16)
    weight = (torch.randn(sizes.vocabulary, width, generator=generator) / math.sqrt(width)).to(device, torch.bfloat16)
    bias, allowed = torch.zeros(sizes.vocabulary, device=device), torch.ones(sizes.vocabulary, dtype=torch.bool, device=device)
    given = (states, weight, bias, allowed, 1.5, sizes.draws, 5)

    def plain() -> Tensor:
        logits = F.linear(states, weight, bias.to(weight.dtype)).float() / 1.5
        return torch.multinomial(logits.softmax(dim=1), sizes.draws, replacement=True)

    ways: dict[str, Call] = {"torch: logits, softmax, multinomial": plain, "reference": lambda: reference.sample_pieces(*given)}
    if runs_on(states):
        from tagsds.kernels.triton.sample import sample_pieces

        ways["triton"] = lambda: sample_pieces(*given)
    flops = 2.0 * sizes.positions * sizes.vocabulary * width
    for name, call in ways.items():
        yield Work(f"sampling of {sizes.draws} pieces", name, call, flops, 2.0 * (weight.numel() + states.numel()))


def measure(work: Work, device: torch.device, repeats: int) -> Row:
    """The median of `repeats` calls, each between two events on the GPU's stream."""
    for _ in range(3):
        work.call()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work.call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            work.call()
            times.append(1e3 * (time.perf_counter() - began))
    middle = statistics.median(times)
    tflops = work.flops / middle / 1e9 if work.flops else None
    return Row(work.operation, work.implementation, middle, tflops, work.bytes / middle / 1e6 if work.bytes else None)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here; --device cpu runs tiny sizes.")
    device = torch.device(given.device)
    sizes = TINY if given.device == "cpu" else Sizes()
    works = [*attention_work(device, sizes, 0.0), *attention_work(device, sizes, 0.1)]
    works += [*add_norm_work(device, sizes), *sample_work(device, sizes)]
    rows = []
    for work in works:
        rows.append(measure(work, device, given.repeats))
        row = rows[-1]
        rates = f"{row.tflops or 0:8.2f} TFLOP/s {row.gigabytes_per_second or 0:8.1f} GB/s"
        print(f"{row.operation:45} {row.implementation:36} {row.milliseconds:9.3f} ms {rates}")
    if given.output:
        machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
        about = {"machine": machine, "torch": torch.__version__, "sizes": asdict(sizes), "repeats": given.repeats}
        given.output.write_text(json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
