"""What both sides of a layout are made of: rules from keys there to parameters here, walked in either direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tagsds.errors import UserError

COUNTER = "num_batches_tracked"  # of BatchNorm: the one number that is no weight


@dataclass(frozen=True)
class Rule:
    """Keys of a published file -> one parameter of ours.

    ours       parameter's name; "" where the file repeats another key (`same_as`), since ours is tied
    theirs     keys in the file; several are stacked along the first dimension
    take, give a change of form, and back (identity where None)
    same_as    the key that `theirs` must be equal to
    """

    ours: str
    theirs: tuple[str, ...]
    take: Callable[[Tensor], Tensor] | None = None
    give: Callable[[Tensor], Tensor] | None = None
    same_as: str = ""


def copies(pairs: Iterable[tuple[str, str]], ends: Iterable[str] = ("weight", "bias")) -> list[Rule]:
    """Rules that copy each `theirs.END` to `ours.END`; pairs are (theirs, ours)."""
    ends = list(ends)
    return [Rule(f"{ours}.{end}", (f"{theirs}.{end}",)) for theirs, ours in pairs for end in ends]


def take_all(rules: list[Rule], theirs: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Our parameters from the file's tensors. UserError for a key that is missing, left over, or not what it repeats."""
    wanted = [key for rule in rules for key in rule.theirs]
    if missing := [key for key in wanted if key not in theirs and not repeats(key, rules)]:
        raise UserError(
            f"{path} lacks {len(missing)} of the keys its layout has (first: {missing[0]}); give the whole checkpoint."
        )
    if strange := sorted(set(theirs) - set(wanted)):
        raise UserError(
            f"{path} has {len(strange)} keys that its layout does not know (first: {strange[0]}); "
            "check the file, or name them after --ignore if they may be left out."
        )
    ours = {}
    for rule in rules:
        if rule.same_as:
            if rule.theirs[0] in theirs and not torch.equal(theirs[rule.theirs[0]], theirs[rule.same_as]):
                raise UserError(
                    f"{rule.theirs[0]} in {path} differs from {rule.same_as}, to which it is tied in this model; "
                    "such an untied checkpoint cannot be held here."
                )
            continue
        parts = [theirs[key] for key in rule.theirs]
        for key, part in zip(rule.theirs, parts):
            if not key.endswith(COUNTER) and not (part.is_floating_point() and bool(part.isfinite().all())):
                raise UserError(f"{key} in {path} holds {part.dtype} or values that are not finite; give the trained weights.")
        try:
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            ours[rule.ours] = (rule.take(value) if rule.take else value).float()
        except (RuntimeError, IndexError) as error:  # parts that do not stack, a table with too few rows
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise unknown_shape(rule.theirs[0], shapes, path) from error
    return ours


def matrix_shape(theirs: Mapping[str, Tensor], key: str, path: Path) -> tuple[int, int]:
    """Rows and columns of a tensor from which a size is read."""
    if key not in theirs:
        raise UserError(f"{path} lacks {key}, from which its sizes are read; give the whole checkpoint.")
    shape = theirs[key].shape
    if len(shape) != 2:
        raise unknown_shape(key, str(list(shape)), path)
    return shape[0], shape[1]


def unknown_shape(key: str, shapes: str, path: Path) -> UserError:
    return UserError(f"{key} in {path} has a shape that its layout does not know ({shapes}); check the file.")


def repeats(key: str, rules: list[Rule]) -> bool:
    return any(rule.same_as and rule.theirs == (key,) for rule in rules)


def give_all(rules: list[Rule], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors from our parameters: `take_all` backwards."""
    theirs: dict[str, Tensor] = {}
    for rule in rules:
        if rule.same_as:
            theirs[rule.theirs[0]] = theirs[rule.same_as]
            continue
        value = rule.give(ours[rule.ours]) if rule.give else ours[rule.ours]
        theirs |= zip(rule.theirs, value.chunk(len(rule.theirs)) if len(rule.theirs) > 1 else [value])
    return theirs


def fit(ours: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """UserError for the first parameter whose shape is not the model's."""
    for name, value in ours.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"'{name}' from {path} has shape {list(value.shape)} where the rest of the file means "
                f"{list(expected[name].shape)}; the file mixes models of several sizes."
            )
