"""The results file of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tagsds.errors import UserError
from tagsds.files import write_text

FORMAT, VERSION = "tagsds-results", 1


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Atomic: the file is either the old one or complete."""
    write_text(path, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A file of `write_results`."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); evaluate again with tagsds-evaluate.") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise UserError(f"{path} is not a results file of tagsds-evaluate; evaluate again, or move the file away.")
    if results.get("version") != VERSION:
        raise UserError(f"{path} has version {results.get('version')}, this program reads {VERSION}; evaluate again.")
    return results
