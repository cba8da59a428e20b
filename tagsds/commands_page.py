"""docs/commands.md: every command with its options, from the argparse parsers.

    python -m tagsds.commands_page                   print the page
    python -m tagsds.commands_page docs/commands.md  write it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from importlib import import_module
from itertools import groupby
from pathlib import Path
from unittest.mock import patch

from tagsds.errors import UserError, command
from tagsds.files import write_text

HEAD = """# Commands

Every command with its options. `python -m tagsds.commands_page docs/commands.md` writes this page from the commands themselves. An
option in bold must be given. A mistake is answered with one sentence and exit status 2.
"""

COMMANDS = {
    "tagsds-pack": "preprocess.pack",
    "tagsds-extract": "preprocess.extract",
    "tagsds-edit": "preprocess.edits",
    "tagsds-convert": "tagsds.models.convert",
    "tagsds-train": "tagsds.train",
    "tagsds-mine": "tagsds.mine",
    "tagsds-evaluate": "tagsds.evaluate",
    "tagsds-report": "tagsds.report",
    "tagsds-write": "tagsds.write",
    "tagsds-serve": "tagsds.serve.command",
    "tagsds-project": "tagsds.project",
    "python -m tagsds.preflight": "tagsds.preflight",
    "python -m tagsds.experiment": "tagsds.experiment",
}
"""module of each command, in the order of the page; it is looked up by name, as an entry point is"""

PARSING = ("parse_args", "parse_intermixed_args", "parse_known_args", "parse_known_intermixed_args")


class Found(BaseException):
    """Carries the parser of a command out of it, past any `except Exception`, when it would read the command line."""


def parser_of(main: Callable[[], object]) -> argparse.ArgumentParser:
    """The parser that a command makes. Nothing of the command runs after it. UserError for a command without a parser."""

    def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise Found(parser)

    with ExitStack() as patches:
        for name in PARSING:
            patches.enter_context(patch.object(argparse.ArgumentParser, name, stop))
        try:
            main()
        except Found as found:
            return found.args[0]
    raise UserError("a command of COMMANDS parses no command line; give it an argparse parser, or take it out.")


def page(commands: dict[str, str] = COMMANDS) -> str:
    lines = [HEAD]
    for name, module in commands.items():
        parser = parser_of(import_module(module).main)
        lines += [f"## {name}", "", *paragraphs(parser.description)]
        sources = subparsers(parser)
        shared = common(sources.values())
        lines += table(rows(parser), "")
        if shared:
            lines += table(shared, f"### {name}: options of several sources")
        for source, of_source in sources.items():
            lines += [f"### {name} {source}", "", *paragraphs(of_source.description or help_of(parser, source))]
            lines += table([row for row in rows(of_source) if row not in shared], "")
            lines += paragraphs(of_source.epilog)
        lines += paragraphs(parser.epilog)
    return "\n".join(lines).rstrip() + "\n"


def paragraphs(text: str | None) -> list[str]:
    """A description as Markdown, each paragraph with an empty line behind it: indented lines, which are examples, stay as they are,
    and other lines are joined."""
    out: list[str] = []
    for example, group in groupby((text or "").strip().splitlines(), key=lambda line: line.startswith("    ") or not line.strip()):
        lines = [line for line in group if line.strip()]
        if lines:
            out += [*(lines if example else [" ".join(line.strip() for line in lines)]), ""]
    return out


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name; empty for a command without."""
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0]) if found else {}


def help_of(parser: argparse.ArgumentParser, name: str) -> str:
    """The line on a subparser in the help of the whole command."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return next((choice.help or "" for action in actions for choice in action._choices_actions if choice.dest == name), "")


def common(parsers: Iterable[argparse.ArgumentParser]) -> list[str]:
    """Rows that more than half of the subparsers share, in the order of the first that has them."""
    all_rows = [rows(parser) for parser in parsers]
    seen = dict.fromkeys(row for own in all_rows for row in own)
    return [row for row in seen if 2 * sum(row in own for own in all_rows) > len(all_rows)]


def rows(parser: argparse.ArgumentParser) -> list[str]:
    """A table row for each option; those that --help hides, --help itself and subcommands have none."""
    return [
        f"| {option(action)} | {values(action)} | {sentence(action)} |"
        for action in parser._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    ]


def table(lines: list[str], title: str) -> list[str]:
    return [*([title, ""] if title else []), "| option | value | what |", "|---|---|---|", *lines, ""] if lines else []


def option(action: argparse.Action) -> str:
    if action.option_strings:
        name = ", ".join(f"`{text}`" for text in action.option_strings)
        return f"**{name}**" if action.required else name
    name = f"`{action.metavar or action.dest}`"
    return name if action.nargs in ("*", "?") else f"**{name}**"


def values(action: argparse.Action) -> str:
    """What follows an option: its choices, or the name of the value; dots where there may be several."""
    if action.nargs == 0 or not (action.option_strings or action.choices):
        return ""
    if action.choices is not None:
        text = ", ".join(f"`{choice}`" for choice in action.choices)
    else:
        text = f"`{action.metavar or action.dest.upper()}`"
    return escaped(text + (" ..." if action.nargs in ("+", "*") or isinstance(action.nargs, int) else ""))


def sentence(action: argparse.Action) -> str:
    """The help text, and the default where the text does not say it."""
    text = " ".join(((action.help or "") % {**vars(action), "prog": ""}).split())
    nothing = action.default in (None, False, argparse.SUPPRESS, "") or action.default == []
    said = any(word in text for word in ("default", "otherwise", f"({shown(action.default)})"))
    if action.option_strings and not nothing and not said:
        text += f" (default {shown(action.default)})"
    parts = escaped(text.strip()).split("`")  # every second one is code
    parts[::2] = [part.replace("_", "\\_").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def escaped(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def run() -> None:
    if len(sys.argv) > 1:
        write_text(Path(sys.argv[1]), page())
    else:
        print(page(), end="")


main = command(run)

if __name__ == "__main__":
    main()
