"""The results file of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tagsds.errors import UserError
from tagsds.files import read_json, write_text
from tagsds.formats.shape import Any as AnyValue
from tagsds.formats.shape import Of, Table, problem

FORMAT, VERSION = "tagsds-results", 1
SHAPE = {
    "split?": Of(str), "provenance?": Table(AnyValue), "recalls?": Table(Of(float)), "examples?": [Of(dict)],
    "edits?": Table(Of(dict)),
}  # fmt: skip


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Atomic: the file is either the old one or complete."""
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A file of `write_results`."""
    remedy = "evaluate again with tagsds-evaluate, or move the file away"
    results = read_json(path, remedy)
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise UserError(f"{path} is not a results file of tagsds-evaluate; {remedy}.")
    if results.get("version") != VERSION:
        raise UserError(f"{path} has version {results.get('version')}, this program reads {VERSION}; evaluate again.")
    if found := problem(results, SHAPE):
        raise UserError(f"{path} is damaged ({found}); {remedy}.")
    return results
