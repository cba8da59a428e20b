"""What a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

MOST_BYTES = 1 << 15  # of the body of a request
MOST_CHARACTERS = 1000  # of a sentence
MOST_CHARACTERS_OF_KEY = 200
MOST_HITS = 200
MOST_NEGATIVES = 50
MOST_OF_A_PAGE = 100  # images
SIDE = 360  # most pixels of a side of a small picture


@dataclass(frozen=True)
class Limits:
    """What the command line sets.

    seconds    a request is answered within this time, or refused
    waiting    requests that wait for the model; one more is refused
    shortlist  images or captions of a matcher's list that the encoder reads
    cache_mib  of pictures that are kept in memory
    """

    seconds: float = 30.0
    waiting: int = 64
    shortlist: int = 50
    cache_mib: int = 64
