"""Negatives of which a blind scorer guesses half: chosen so that the words alone give nothing away."""

from __future__ import annotations

from collections.abc import Sequence


def balanced(margins: Sequence[Sequence[float | None]], most: int) -> list[list[int]]:
    """Which negatives to take of each caption, at most `most`: places in its row, ascending.

    margins   of a caption's negatives, the hardest first: log-likelihood of the caption minus that of the negative by the words
              alone. Above zero the blind scorer prefers the caption

    Caption by caption, the hardest one left is taken of the side that has been taken less often so far, over all captions; of the
    other side where that has none.
    """
    lead, taken = 0, []  # how many more of those above zero were taken than of the others
    for row in margins:
        sides = {True: [n for n, m in enumerate(row) if (m or 0.0) > 0], False: [n for n, m in enumerate(row) if (m or 0.0) <= 0]}
        chosen: list[int] = []
        while len(chosen) < most and any(sides.values()):
            side = lead < 0 or (lead == 0 and bool(sides[True]) and (not sides[False] or sides[True][0] < sides[False][0]))
            side = side if sides[side] else not side
            chosen.append(sides[side].pop(0))
            lead += 1 if side else -1
        taken.append(sorted(chosen))
    return taken
