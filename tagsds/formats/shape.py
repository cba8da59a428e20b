"""The shape of JSON values: what a format expects, and one sentence on the first value that is something else.

    Of(str)                        a string (int: a whole number, never true or false; float: any finite number; bool; dict; list)
    Count(1)                       a whole number of at least 1 (and at most 2**62)
    [shape]                        a list of such values
    {"key": shape, "other?": ...}  an object with these keys; `other` may be absent; further keys are allowed
    Table(shape)                   an object of any keys with such values
    Any                            any value
    (shape, None)                  one of several; None stands for null
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any as AnyType

from tagsds.errors import UserError
from tagsds.files import AGAIN, read_json_object

NAMES = {str: "a string", int: "a whole number", float: "a finite number", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True)
class Of:
    """A value of one type."""

    type: type

    def __str__(self) -> str:
        return NAMES[self.type]

    def holds(self, value: AnyType) -> bool:
        if self.type is float:
            return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
        return type(value) is self.type


@dataclass(frozen=True)
class Count:
    """A whole number of at least `least` and at most `most`."""

    least: int = 0
    most: int = 1 << 62

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def holds(self, value: AnyType) -> bool:
        return type(value) is int and self.least <= value <= self.most


@dataclass(frozen=True)
class Table:
    """An object whose values have one shape."""

    of: AnyType


class Any:
    """Any value."""


def problem(value: AnyType, shape: AnyType, place: str = "") -> str | None:
    """What is wrong with the first value that does not fit, such as `splits.train.images is '12', not a whole number`; None if
    all fit."""
    if shape is Any:
        return None
    if isinstance(shape, tuple):
        fits = [value is None if one is None else problem(value, one, place) is None for one in shape]
        return None if any(fits) else (f"{place or 'the value'} is null" if value is None else problem(value, shape[0], place))
    if isinstance(shape, (Of, Count)):
        return None if shape.holds(value) else f"{place or 'the value'} is {shown(value)}, not {shape}"
    wanted = Of(list if isinstance(shape, list) else dict)
    if not wanted.holds(value):
        return f"{place or 'the value'} is {shown(value)}, not {wanted}"
    if isinstance(shape, list):
        inner = ((f"{place}[{number}]", one, shape[0]) for number, one in enumerate(value))
    elif isinstance(shape, Table):
        inner = ((f"{place}.{key}"[-200:].lstrip("."), one, shape.of) for key, one in value.items())
    else:
        if absent := [key for key in shape if not key.endswith("?") and key not in value]:
            return f"{place + ' lacks' if place else 'it lacks'} '{absent[0]}'"
        names = {key: key.removesuffix("?") for key in shape}
        inner = ((f"{place}.{name}".lstrip("."), value[name], shape[key]) for key, name in names.items() if name in value)
    return next((found for where, one, of in inner if (found := problem(one, of, where))), None)


def shown(value: AnyType) -> str:
    """A value, short enough for a sentence."""
    if isinstance(value, (dict, list)):
        return NAMES[type(value)]
    try:
        text = "null" if value is None else repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        text = "a number of very many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_object(path: Path, shape: dict[str, AnyType], what: str, remedy: str = AGAIN) -> dict[str, AnyType]:
    """A JSON file whose object has this shape. UserError: "PATH is not `what` (the first problem); `remedy`."."""
    value = read_json_object(path, remedy)
    if found := problem(value, shape):
        raise UserError(f"{path} is not {what} ({found}); {remedy}.")
    return value
