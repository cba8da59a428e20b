"""docs/faults.md names files and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "faults.md"
TESTS = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))))


def test_the_page_names_tests() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d", line)]
    assert len(rows) >= 15 and all("::test_" in row for row in rows)


@pytest.mark.parametrize(("file", "function"), TESTS)
def test_a_named_test_exists(file: str, function: str) -> None:
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {function}\(", text, re.MULTILINE), f"docs/faults.md names {file}::{function}"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")))))
def test_a_link_leads_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists(), f"docs/faults.md links to {link}"
