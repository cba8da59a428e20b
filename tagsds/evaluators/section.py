"""A part of the HTML report as plain data: evaluators say what is shown, reporting how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Interval = tuple[float, float, float]  # value, low, high, %


@dataclass
class Cell:
    """Text; `best` of its column is bold; `note` stands behind it, small."""

    text: str
    best: bool = False
    note: str = ""


@dataclass
class Row:
    """`label` is the first column, or `run` with its colour; `chance` rows are set apart from what was measured."""

    label: str
    cells: list[Cell]
    run: str | None = None
    note: str = ""
    chance: bool = False


@dataclass
class Table:
    """A table with a title; `groups`: (title, columns) over the header, in order, the first column left out."""

    title: str
    first: str  # header of the first column
    header: Sequence[str]
    rows: list[Row]
    groups: Sequence[tuple[str, int]] = ()
    header_notes: Sequence[str] = ()
    before: str = ""  # a paragraph above the table
    note: str = ""  # a small one below
    run: str | None = None  # whose colour stands before the title

    @property
    def edges(self) -> set[int]:
        """Columns that begin a group."""
        starts, at = set(), 0
        for _, width in self.groups:
            starts.add(at)
            at += width
        return starts


@dataclass
class Bars:
    """A bar plot with 95 % intervals: a value a label and run, per cent."""

    title: str
    labels: Sequence[str]
    rows: Mapping[str, Sequence[Interval | None]]


@dataclass
class Section:
    """Sections of equal `id` are one: title and introduction come from the first that has them.

    absent   the sentence that stands where no run has any of it; "": the section is left out
    """

    id: str
    parts: list[Table | Bars] = field(default_factory=list)
    title: str = ""
    intro: str = ""
    absent: str = ""


def mark_best(rows: Sequence[Row], values: Sequence[Sequence[float]], lowest: Sequence[bool]) -> None:
    """Mark the best cell of each column where there are several rows: values[row][column], the lowest or the highest."""
    if len(rows) < 2:
        return
    for column, low in enumerate(lowest):
        best = (min if low else max)(row[column] for row in values)
        for row, given in zip(rows, values, strict=True):
            row.cells[column].best = given[column] == best
