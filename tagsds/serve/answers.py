"""Requests and answers as they travel: the OpenAPI description is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from tagsds.negatives.sentences import FILTERS, KINDS, OPTIONAL
from tagsds.serve import limits

Key = Annotated[str, Field(min_length=1, max_length=limits.MOST_CHARACTERS_OF_KEY, description="key of an image, or its file name")]
Sentence = Annotated[str, Field(min_length=1, max_length=limits.MOST_CHARACTERS)]
Hits = Annotated[int, Field(ge=1, le=limits.MOST_HITS, description="how many hits")]
Box = Annotated[list[float], Field(min_length=4, max_length=4, description="x1, y1, x2, y2 as fractions of the image, 0..1")]


class Asked(BaseModel):
    """A request; a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid")


class FindImages(Asked):
    sentence: Sentence
    k: Hits = 12


class FindSentences(Asked):
    image: Key
    k: Hits = 12


class Held(Asked):
    """A sentence held against an image."""

    image: Key
    sentence: Sentence


class Write(Held):
    n: Annotated[int, Field(ge=1, le=limits.MOST_NEGATIVES, description="most negatives")] = 8
    seed: Annotated[int, Field(ge=0, lt=1 << 31, description="the same seed gives the same sentences")] = 0
    most_words: Annotated[int | None, Field(ge=1, le=100, description="most words that are changed")] = None
    max_score: Annotated[float, Field(ge=0, le=1, description="above it a sentence is taken to be true")] = 1.0
    kinds: Annotated[list[Literal[KINDS]], Field(max_length=len(KINDS), description="kinds of edit that are kept; none: all")] = []  # type: ignore[valid-type]
    without: Annotated[list[Literal[OPTIONAL]], Field(max_length=len(OPTIONAL), description="filters that are left out")] = []  # type: ignore[valid-type]


class Problem(BaseModel):
    """What went wrong, in a sentence."""

    error: str


class Stage(BaseModel):
    """A model's part in a search."""

    name: Annotated[str, Field(description="matcher or encoder")]
    model: str
    scored: Annotated[int, Field(description="images or sentences that it scored")]
    milliseconds: float


class ImageHit(BaseModel):
    key: str
    score: Annotated[float, Field(description="of the last stage: s(I, T) in 0..1 of the encoder, similarity of a matcher")]
    matcher_rank: Annotated[int | None, Field(description="place in the matcher's list, from 1; null without a matcher")]
    alt: Annotated[str, Field(description="what the image shows, for who does not see it")]


class SentenceHit(BaseModel):
    sentence: str
    key: Annotated[str, Field(description="key of the image it was written for")]
    score: float
    matcher_rank: int | None
    own: Annotated[bool, Field(description="whether it was written for the image that was asked with")]


class Search(BaseModel):
    """`waited_ms` in the queue, before the first stage."""

    stages: list[Stage]
    waited_ms: float


class ImagesFound(Search):
    hits: list[ImageHit]


class SentencesFound(Search):
    hits: list[SentenceHit]


class Word(BaseModel):
    """The characters [start, end) of the sentence."""

    text: str
    start: int
    end: int


class SuspectedWord(Word):
    suspicion: Annotated[float, Field(description="probability that the word was replaced, 0..1")]
    suggestion: Annotated[str | None, Field(description="what it should be; null where the correction head is not trained")]
    certainty: Annotated[float | None, Field(description="probability of the suggestion, 0..1")]


class Proofread(BaseModel):
    words: list[SuspectedWord]
    score: Annotated[float, Field(description="s(I, T) of the sentence, 0..1")]
    milliseconds: float


class AlignedWord(Word):
    weights: Annotated[list[float], Field(description="share of each region, in the order of `regions`; they sum to 1")]


class Region(BaseModel):
    box: Box
    name: Annotated[str, Field(description="its most probable class; empty where it has none")]


class Aligned(BaseModel):
    words: list[AlignedWord]
    regions: list[Region]
    milliseconds: float


class Changed(BaseModel):
    """A word that was replaced: `old` at the characters [start, end) of the caption."""

    old: str
    new: str
    start: int
    end: int
    kind: str


class Negative(BaseModel):
    text: str
    score: Annotated[float, Field(description="s(I, T) of it, 0..1: the higher, the harder")]
    kind: str
    changes: list[Changed]
    marks: Annotated[list[list[int]], Field(description="the changed words as characters [start, end) of `text`")]


class Dropped(BaseModel):
    filter: Annotated[str, Field(description=f"one of {', '.join(FILTERS)}")]
    why: str
    count: int
    sentences: Annotated[list[str], Field(description="different ones, in the order of writing; at most 100")]


class Written(BaseModel):
    caption: str
    score: Annotated[float, Field(description="s(I, T) of the caption, 0..1")]
    written: Annotated[int, Field(description="candidates in all")]
    spare: Annotated[int, Field(description="negatives that passed beyond `n`")]
    negatives: list[Negative]
    dropped: list[Dropped]
    milliseconds: float


class Listed(BaseModel):
    key: str
    alt: str


class Page(BaseModel):
    """A part of the corpus's images, in the order of the split."""

    total: Annotated[int, Field(description="images whose key contains what was asked for")]
    start: int
    images: list[Listed]


class Image(BaseModel):
    key: str
    alt: str
    captions: list[str]
    regions: list[Region]
    drawn: Annotated[bool, Field(description="no picture is there: what /api/picture gives is drawn from the regions")]
    previous: str | None
    next: str | None


class Model(BaseModel):
    name: Annotated[str, Field(description="folder of the run")]
    kind: str


class About(BaseModel):
    """What is served, and what it can do."""

    model: Annotated[Model, Field(description="of --checkpoint")]
    matcher: Annotated[Model | None, Field(description="of --matcher, whose shortlist the model reads")]
    shortlist: Annotated[int, Field(description="images or captions of that list")]
    corpus: Annotated[str, Field(description="name of the folder of shards")]
    split: str
    images: int
    captions: int
    proofreads: Annotated[bool, Field(description="the discrimination head is trained")]
    corrects: Annotated[bool, Field(description="the correction head is trained")]
    writes: Annotated[bool, Field(description="the masked-word head is trained")]
    aligns: Annotated[bool, Field(description="the model is an encoder, not a matcher")]
    most_hits: Annotated[int, Field(description="largest k")] = limits.MOST_HITS
    most_negatives: Annotated[int, Field(description="largest n")] = limits.MOST_NEGATIVES
    most_characters: Annotated[int, Field(description="of a sentence")] = limits.MOST_CHARACTERS
    version: Annotated[str | None, Field(description="of tagsds")]


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    waiting: Annotated[int, Field(description="requests at the model or before it")]
