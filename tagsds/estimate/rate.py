"""How many floating-point operations a second this machine makes, by a quick matrix product."""

from __future__ import annotations

import time

import torch


def measured_rate(w: int, hidden: int, seconds: float = 0.5) -> float:
    """FLOP a second of [4096, H] x [H, 4 H] products (2048 rows on a CPU) in bfloat16 (w = 2) or float32: what the feed-forward of
    a layer consists of. A step does not come up to it; see docs/results/zero.md."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = 4096 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if w == 2 else torch.float32
    x, y = torch.randn(rows, hidden, device=device).to(dtype), torch.randn(hidden, 4 * hidden, device=device).to(dtype)

    def run(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            x @ y
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    run(1)
    times = max(1, int(seconds / max(run(1), 1e-6)))
    return times * 2 * rows * hidden * 4 * hidden / run(times)
