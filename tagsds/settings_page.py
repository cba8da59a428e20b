"""docs/settings.md: every setting of a recipe with its type, default and sentence, from the dataclasses.

    python -m tagsds.settings_page                  print the page
    python -m tagsds.settings_page docs/settings.md write it
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from tagsds.config import RunConfig
from tagsds.files import write_text
from tagsds.models.matchers import MATCHERS

HEAD = """# Settings

Every setting of a recipe (`tagsds/recipes/*.yaml`) and of the command line (`group.key=value`). A recipe changes the defaults
below, the command line changes the recipe; an unknown key is an error. `python -m tagsds.settings_page docs/settings.md`
writes this page from the dataclasses.
"""


@dataclass(frozen=True)
class Setting:
    """One row: the key as a recipe spells it, the type as the code does."""

    key: str
    type: str
    default: Any
    text: str


def settings_of(group: Any) -> Iterator[Setting]:
    """The settings of a dataclass (an instance with the defaults), those of the classes it inherits from first. A field's text is
    the string under it."""
    texts: dict[str, tuple[str, str]] = {}
    for owner in reversed(type(group).__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, below in zip(body.body, [*body.body[1:], None]):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                texts[line.target.id] = ast.unparse(line.annotation), " ".join(str(text).split())
    for field in fields(group):
        kind, text = texts[field.name]
        yield Setting(field.name, kind, getattr(group, field.name), text)


def groups() -> Iterator[tuple[str, Any]]:
    """(title, group with its defaults); the group of a matcher once for each kind."""
    config = RunConfig()
    yield "Run", config
    for name, group in vars(config).items():
        if name == "matcher":
            yield from ((f"matcher, kind {kind}", known.settings()) for kind, known in MATCHERS.items())
        elif is_dataclass(group):
            yield name, group


def page() -> str:
    lines = [HEAD]
    for title, group in groups():
        about = " ".join((inspect.getdoc(type(group)) or "").split())
        lines += [f"## {title}", "", about, "", "| key | type | default | what |", "|---|---|---|---|"]
        prefix = "" if title == "Run" else f"{title.split(',')[0]}."
        for setting in settings_of(group):
            if not is_dataclass(setting.default):
                cells = (f"`{prefix}{setting.key}`", f"`{setting.type}`", shown(setting.default), setting.text)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def shown(value: Any) -> str:
    """A default as YAML spells it."""
    names = {"None": "left open", "True": "true", "False": "false", "''": "empty", "[]": "empty", "{}": "empty"}
    return names.get(repr(value), f"`{value}`")


def main() -> None:
    if len(sys.argv) > 1:
        write_text(Path(sys.argv[1]), page())
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
