"""docs/commands.md is what the argparse parsers say, and holds every installed command."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

from tagsds.commands_page import COMMANDS, page, paragraphs, parser_of, rows
from tagsds.errors import UserError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "commands.md"


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == page(), "run python -m tagsds.commands_page docs/commands.md"


ENDINGS = (":main", ":program")


def test_every_installed_command_is_on_the_page() -> None:
    words = [node.value for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Constant)]
    scripts = dict(word.split(":")[0].split("=") for word in words if isinstance(word, str) and word.endswith(ENDINGS))
    assert "tagsds-train" in scripts
    assert {name: module for name, module in COMMANDS.items() if not name.startswith("python")} == scripts


def test_rows_by_hand() -> None:
    def main() -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("source", help="a file | a_folder")
        parser.add_argument("--out", required=True, metavar="DIR")
        parser.add_argument("--kind", choices=("a", "b"), default="a", help="which `x_y`, 50%% of them")
        parser.add_argument("--many", type=float, nargs="+", default=[0.5, 2], help="numbers")
        parser.add_argument("--quiet", action="store_true", help="say nothing")
        parser.add_argument("--rate", type=float, default=4.0, help="so fast (4)")
        parser.add_argument("--hidden", help=argparse.SUPPRESS)
        parser.parse_args()
        raise AssertionError("nothing of a command may run after its parser is there")

    assert rows(parser_of(main)) == [
        "| **`source`** |  | a file \\| a\\_folder |",
        "| **`--out`** | `DIR` |  |",
        "| `--kind` | `a`, `b` | which `x_y`, 50% of them (default a) |",
        "| `--many` | `MANY` ... | numbers (default 0.5 2) |",
        "| `--quiet` |  | say nothing |",
        "| `--rate` | `RATE` | so fast (4) |",
    ]
    assert argparse.ArgumentParser().parse_args([]) == argparse.Namespace()  # parses again as it did


def test_a_command_without_a_parser_is_named() -> None:
    with pytest.raises(UserError, match="parses no command line"):
        parser_of(lambda: None)


def test_examples_of_a_description_stay_lines() -> None:
    assert paragraphs("One\ntwo.\n\n    do --this\n    do --that\nThree.") == [
        "One two.", "", "    do --this", "    do --that", "", "Three.", "",
    ]  # fmt: skip
