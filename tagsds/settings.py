"""Checks that the dataclasses of settings share. Each raises a UserError that names the key as a recipe spells it.

A group of settings is a dataclass beside its owner, with `check(group)`, where `group` is its name in a recipe.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tagsds.errors import UserError, nearest


def above_zero(settings: Any, group: str, *names: str) -> None:
    """Numbers above zero; a value that is left open (None) passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise UserError(f"{group}.{name}={value} must be above zero.")


def not_negative(settings: Any, group: str, *names: str) -> None:
    """Numbers of at least zero."""
    for name in names:
        if getattr(settings, name) < 0:
            raise UserError(f"{group}.{name}={getattr(settings, name)} must not be negative.")


def probability(settings: Any, group: str, *names: str) -> None:
    """Probabilities: at least 0 and below 1."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise UserError(f"{group}.{name}={getattr(settings, name)} must be at least 0 and below 1.")


def one_of(settings: Any, group: str, **known: Iterable[str]) -> None:
    """Names among the known ones: one_of(self, group, pooling=("lse", "avg"))."""
    for name, values in known.items():
        value = getattr(settings, name)
        if value not in values:
            raise UserError(f"{group}.{name} '{value}': {nearest(value, values)}".removeprefix("."))
