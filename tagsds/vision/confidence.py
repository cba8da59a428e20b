"""Which of a detector's regions are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def most_confident(confidence: NDArray, threshold: float, fewest: int, most: int) -> NDArray[np.int64]:
    """Rows of the regions above `threshold`, but at least `fewest` (or all) and at most `most`; the most confident first,
    equals in the order they came."""
    order = np.argsort(-confidence, kind="stable")
    return order[: min(max(int((confidence > threshold).sum()), fewest), most)]
