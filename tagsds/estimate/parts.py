"""Named amounts of memory or disk, and how they are printed."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2.0**30


@dataclass(frozen=True)
class Part:
    """One line of an estimate: `bytes` of `name`, on the "device" or the "host" (a rank's own, or `shared` by a node's ranks).

    at       "always", or the phase of a step in which it is held: "backward", "mining", "writing"
    remedy   what makes it smaller, for the sentence that says what does not fit
    """

    name: str
    bytes: float
    where: str = "device"
    at: str = "always"
    remedy: str = ""


def total(parts: list[Part], where: str) -> tuple[float, str]:
    """The most that is held at once, and the phase in which it is: what is always there, and the largest phase."""
    phases = {part.at for part in parts if part.where == where} - {"always"} or {"always"}
    sums = {phase: sum(p.bytes for p in parts if p.where == where and p.at in ("always", phase)) for phase in phases}
    most = max(sums, key=lambda phase: sums[phase])
    return sums[most], most


def gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:,.2f} MiB"
