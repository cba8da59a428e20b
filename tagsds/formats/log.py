"""A row of a run's log.jsonl: one JSON object a logged step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tagsds.errors import UserError, first_line


def step_of(line: str, path: Path, number: int) -> tuple[int, dict[str, Any]]:
    """Step and values of line `number`. A value may be NaN, which a broken run logs. UserError for what is no such line."""
    try:
        entry = json.loads(line)
        step = entry["step"]
        if type(step) is not int or not 0 <= step < 1 << 62:
            raise ValueError(f"its step is {type(step).__name__}")
        return step, entry
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise UserError(f"{path}, line {number} is not a logged step ({first_line(error)}); remove the line.") from error
