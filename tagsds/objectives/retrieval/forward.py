"""The one packed forward of a step: terms ask for pairs and positions before it, and for scores and states behind it.

Shapes: P = pairs of the forward, K = stream positions whose states are kept, H = hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.models.uniter import Layout, UniterModel

Asked = TypeVar("Asked")


@dataclass(eq=False)
class Place:
    """Pairs that a term has asked for; `at` are their places in the forward, once it is packed."""

    images: Tensor
    captions: Tensor | None = None  # int64 of the bank, or
    texts: Ragged | None = None  # rows that are not in the bank, one a pair
    scored: bool = False
    at: slice = field(default_factory=lambda: slice(0, 0))


@dataclass(eq=False)
class Positions:
    """Stream positions that a term has asked for, int64; `find` tells them once the pairs are packed."""

    find: Callable[[Layout], Tensor]
    stream: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class Plan:
    """Collects what the terms want. The pairs of the bank's captions come first, each caption and image once however many terms
    use it; then the sentences that are not in the bank."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self._places: list[Place] = []
        self._positions: list[Positions] = []
        self._once: dict[Hashable, object] = {}

    def once(self, key: Hashable, ask: Callable[[], Asked]) -> Asked:
        """What `ask` asked for when `key` was first named: for terms that share pairs."""
        if key not in self._once:
            self._once[key] = ask()
        return self._once[key]  # type: ignore[return-value]

    def captions(self, captions: Tensor, images: Tensor, scored: bool = True) -> Place:
        """Pairs of the bank's captions and images, both int64 of one shape (flattened)."""
        return self._add(Place(images.flatten(), captions=captions.flatten(), scored=scored))

    def texts(self, texts: Ragged, images: Tensor, scored: bool) -> Place:
        """Pairs of texts that are not in the bank (int64 rows, N of them) and images int64 [N]."""
        return self._add(Place(images, texts=texts, scored=scored))

    def positions(self, find: Callable[[Layout], Tensor]) -> Positions:
        """Stream positions by the layout of all pairs, which is known when the forward is packed."""
        asked = Positions(find)
        self._positions.append(asked)
        return asked

    def _add(self, place: Place) -> Place:
        self._places.append(place)
        return place

    def encode(self, model: UniterModel) -> States:
        """Pack, forward once, and keep the states that were asked for."""
        builder = PairBuilder(self.bank)
        numbers = {id(place): place.captions for place in self._places if place.captions is not None}
        # one call, so that a caption that is true here and hard there is one row
        rows = builder.captions(torch.cat(list(numbers.values())), hides_words=True).split([len(part) for part in numbers.values()])
        row_of = dict(zip(numbers, rows, strict=True))
        places = sorted(self._places, key=lambda place: place.captions is None)  # stable: the bank's captions first
        for place in places:
            text_rows = row_of[id(place)] if place.texts is None else builder.texts(place.texts)
            place.at = builder.pairs(text_rows, place.images)
        pairs = builder.build()
        layout = Layout.of(pairs)
        number = torch.arange(len(pairs), device=self.bank.device)
        scored = [place for place in places if place.scored]
        cls = layout.cls(torch.cat([number[place.at] for place in scored]))
        for asked in self._positions:
            asked.stream = asked.find(layout)
        keep = torch.unique(torch.cat([cls, *(asked.stream for asked in self._positions)]))
        states = model(pairs, keep)
        logits = model.score(states[torch.searchsorted(keep, cls)])
        lengths = [place.at.stop - place.at.start for place in scored]
        parts = zip(logits.split(lengths), torch.sigmoid(logits).split(lengths), strict=True)
        return States(pairs, keep, states, dict(zip(map(id, scored), parts, strict=True)))


@dataclass
class States:
    """What the forward gave. `states` [K, H] at the stream positions `keep`."""

    pairs: Pairs
    keep: Tensor
    states: Tensor
    _ranked: dict[int, tuple[Tensor, Tensor]]

    def logits(self, place: Place) -> Tensor:
        """The ranking logits of the pairs of a place, float32."""
        return self._ranked[id(place)][0]

    def scores(self, place: Place) -> Tensor:
        """s(I, T) = sigmoid(ranking logit) of the pairs of a place, float32."""
        return self._ranked[id(place)][1]

    def at(self, asked: Positions) -> Tensor:
        """States at the positions that were asked for, in their order."""
        return self.states[torch.searchsorted(self.keep, asked.stream)]
