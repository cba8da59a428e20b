"""What the objective asks of a loss term."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.forward import Place, Plan, States


@dataclass
class TermOutput:
    """losses     {name: float32 []} before their weight; the term's loss is their sum
    counters   {name: (hits, cases)}, to be summed over micro-batches and ranks before dividing
    scores     {name: float [N]} for histograms
    """

    losses: dict[str, Tensor]
    counters: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        return sum(self.losses.values())  # type: ignore[return-value]


class Term(Protocol):
    """One loss. Everything that belongs to a step is in the arguments, so that a term is settings alone."""

    heads: tuple[str, ...]  # of the encoder, that it trains beside the ranking head

    def ask(self, draws: Draws, plan: Plan, true: Place) -> Any:
        """Draw without gradient and ask for pairs and positions; what is returned comes back in `value`. `true`: the true pairs."""
        ...

    def value(self, asked: Any, draws: Draws, states: States, true: Tensor) -> TermOutput:
        """The loss from the states of the one forward. `true` float [B]: s(I, T) of the true pairs."""
        ...
