"""docs/settings.md is what the dataclasses say, and every setting says something."""

from pathlib import Path

import pytest

from tagsds.settings_page import groups, page, settings_of

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"


def test_the_page_is_that_of_the_code():
    assert PAGE.read_text() == page(), "run python -m tagsds.settings_page docs/settings.md"


@pytest.mark.parametrize(("title", "group"), list(groups()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_setting_has_a_sentence(title, group):
    found = list(settings_of(group))
    assert [setting.key for setting in found] == list(vars(group))
    assert type(group).__doc__ and not type(group).__doc__.startswith(type(group).__name__ + "(")
    bare = [s.key for s in found if not s.text and not hasattr(s.default, "check")]  # a group's text is its own docstring
    assert bare == []


def test_rows_hold_type_and_default():
    rows = {line.split("|")[1].strip(): line for line in page().splitlines() if line.startswith("| `")}
    assert "| `float` | `5e-05` | highest learning rate |" in rows["`optimiser.lr`"]
    assert "`matcher.direction`" in rows and "| `str` | `t2i` |" in rows["`matcher.direction`"]
    assert "| `int \\| None` | left open |" in rows["`matcher.embed_size`"]
