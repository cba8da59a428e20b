"""One sample of a shard, held against the contract of preprocess/README.md before anything is made of it."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np

from tagsds.data.shard_files import AGAIN
from tagsds.errors import UserError, first_line
from tagsds.files import parse_json, parse_npy
from tagsds.formats.manifest import Manifest
from tagsds.formats.shape import Count, Of, problem

DTYPES: dict[str, type] = {"regions": np.float16, "boxes": np.float32, "classes": np.float16}
BOX_SLACK = 1e-4  # rounding that a fraction may show outside 0..1
SUM_TOLERANCE = 0.02  # of a row of float16 soft labels that should sum to 1
NEGATIVES = "negatives.json"  # the member that tagsds-write adds
NEGATIVES_SHAPE = [{
    "id": Of(str), "score": Of(float),
    "negatives": [{
        "text": Of(str), "score": Of(float), "kind": Of(str), "blind": (Of(float), None),
        "changes": [{"old": Of(str), "new": Of(str), "start": Count(), "end": Count(), "kind": Of(str)}],
    }],
}]  # fmt: skip


def member(sample: dict[str, Any], name: str, where: str) -> bytes:
    if name not in sample:
        raise UserError(f"{where}: {name} is missing; {AGAIN}.")
    return sample[name]


def array_of(sample: dict[str, Any], name: str, where: str, width: int) -> np.ndarray:
    """`name`.npy as [n > 0, width] finite numbers of the contract's dtype."""
    try:
        array = parse_npy(member(sample, f"{name}.npy", where))
    except ValueError as error:
        raise UserError(f"{where}: {name}.npy is no whole npy array ({first_line(error)}); {AGAIN}.") from error
    if array.dtype != DTYPES[name]:
        raise UserError(f"{where}: {name}.npy is {array.dtype}, not {np.dtype(DTYPES[name])}; {AGAIN}.")
    if array.ndim != 2 or array.shape[1] != width or len(array) == 0:
        raise UserError(f"{where}: {name}.npy has shape {array.shape}, not [n > 0, {width}]; {AGAIN}.")
    if not np.isfinite(array).all():
        raise UserError(f"{where}: {name}.npy holds NaN or infinity; extract this image again.")
    return array


def arrays_of(sample: dict[str, Any], where: str, manifest: Manifest, wanted: Container[str]) -> dict[str, np.ndarray]:
    """`regions` float16 [n, D] and, where they are among `wanted`, `boxes` float32 [n, 4] and `classes` float16 [n, C]."""
    found = {"regions": array_of(sample, "regions", where, manifest.feature_dim)}
    n = len(found["regions"])
    if n > manifest.max_regions:
        raise UserError(f"{where}: regions.npy has {n} rows, the manifest says max_regions {manifest.max_regions}; {AGAIN}.")
    for name, width in (("boxes", 4), ("classes", manifest.num_classes)):
        if name in wanted:
            found[name] = array_of(sample, name, where, width)
            if len(found[name]) != n:
                raise UserError(f"{where}: {name}.npy has {len(found[name])} rows for {n} regions; {AGAIN}.")
    if "boxes" in found and not (-BOX_SLACK <= found["boxes"].min() and found["boxes"].max() <= 1 + BOX_SLACK):
        raise UserError(f"{where}: a row of boxes.npy lies outside 0..1; {AGAIN}.")
    if "classes" in found and (np.abs(found["classes"].astype(np.float32).sum(1) - 1) > SUM_TOLERANCE).any():
        raise UserError(f"{where}: a row of classes.npy does not sum to 1; {AGAIN}.")
    return found


def captions_of(sample: dict[str, Any], where: str, pieces: int) -> list[dict[str, Any]]:
    """captions.json: a list of {text, id, spans, ids}, of which only `text` must be there. `pieces`: size of the vocabulary."""
    found = parse_json(member(sample, "captions.json", where), f"{where}: captions.json", AGAIN)
    problem = "it is no list of captions" if not isinstance(found, list) or not found else None
    for number, caption in enumerate(found if problem is None else ()):
        if problem := problem_of_caption(caption, pieces):
            problem = f"caption {number}: {problem}"
            break
    if problem is not None:
        raise UserError(f"{where}: captions.json is damaged ({problem}); {AGAIN}.")
    return found


def negatives_of(sample: dict[str, Any], where: str, captions: int) -> list[dict[str, Any]]:
    """negatives.json, which tagsds-write --layout shards adds: a row for each of the sample's `captions`, in their order,
    {"id", "score": s(I, T) of the caption, "negatives": [{"text", "score", "kind", "changes", "blind"}, ...]}, the hardest first.
    UserError where it is missing or damaged."""
    found = parse_json(member(sample, NEGATIVES, where), f"{where}: {NEGATIVES}", AGAIN)
    fault = problem(found, NEGATIVES_SHAPE)
    if fault is None and len(found) != captions:
        fault = f"it is of {len(found)} captions, the sample has {captions}"
    if fault is not None:
        raise UserError(f"{where}: {NEGATIVES} is damaged ({fault}); {AGAIN}.")
    return found


def problem_of_caption(caption: Any, pieces: int) -> str | None:
    """What is wrong with a caption's values, None if nothing."""
    if type(caption) is not dict or type(caption.get("text")) is not str:
        return "it has no text"
    if type(caption.get("id", "")) not in (str, int):
        return "its id is no string"
    ids, spans = caption.get("ids"), caption.get("spans", [])
    if ids is not None and (type(ids) is not list or not all(type(i) is int and 0 <= i < pieces for i in ids)):
        return f"its ids are not pieces of the vocabulary of {pieces}"
    if type(spans) is not list:
        return "its spans are no list"
    for span in spans:
        if ids is None:
            ranges = span.get("chars") if type(span) is dict else None
            if type(ranges) is not list or not all(is_range(pair, len(caption["text"])) for pair in ranges):
                return "a span lies outside the caption"
        else:
            places = span.get("pieces") if type(span) is dict else None
            if type(places) is not list or not all(type(i) is int and 0 <= i < len(ids) for i in places):
                return "a span lies outside the ids"
    return None


def is_range(pair: Any, end: int) -> bool:
    """Whether this is [a, b] with 0 <= a < b <= end."""
    return type(pair) is list and len(pair) == 2 and type(pair[0]) is type(pair[1]) is int and 0 <= pair[0] < pair[1] <= end
