"""The pages of docs/: each is in the menu, each link leads somewhere, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import script

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TOOLS = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers")

hooks = script("docs/hooks.py")
SOURCES = {path.relative_to(DOCS).as_posix(): path for path in DOCS.rglob("*.md")} | hooks.MIRRORED


def in_menu(entry: Any) -> list[str]:
    """The pages of an entry of mkdocs.yml's nav."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in in_menu(part)]


def test_every_page_is_in_the_menu_once() -> None:
    menu = in_menu(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(menu) == sorted(SOURCES)


def targets(text: str) -> list[str]:
    """Where links to other files lead, without the place in the file."""
    return [target.partition("#")[0] for _, target in hooks.LINK.findall(text) if not re.match(r"[a-z]+:|#", target)]


@pytest.mark.parametrize("page", sorted(SOURCES))
def test_links_lead_somewhere_in_the_checkout_and_on_the_site(page: str) -> None:
    text = "".join(hooks.FENCE.split(SOURCES[page].read_text())[::2])  # without code blocks
    assert [link for link in targets(text) if not (SOURCES[page].parent / link).exists()] == []
    pages = {*SOURCES, "results/resume.svg", "notebook.ipynb"}
    there = targets(hooks.links_of_the_site(text, page))
    assert [link for link in there if os.path.normpath(Path(page).parent / link) not in pages] == []


@pytest.mark.parametrize(
    ("page", "before", "after"),
    [
        ("faults.md", "[config.py](../tagsds/config.py)", "`config.py`"),
        ("faults.md", "[`config.py`](../tagsds/config.py)", "`config.py`"),
        ("long_runs.md", "[slurm/](../slurm)", "[slurm/](slurm.md)"),
        ("results/speed.md", "[benchmarks/](../../benchmarks)", "[benchmarks/](log.md)"),
        ("slurm.md", "[env.sh](env.sh)", "`env.sh`"),
        ("deepspeed.md", "[runs](../docs/long_runs.md#trouble)", "[runs](long_runs.md#trouble)"),
        ("results/log.md", "[speed](../docs/results/speed.md)", "[speed](speed.md)"),
        *(("index.md", same, same) for same in ("[web](https://arxiv.org/abs/2111.03349)", "[here](#top)")),
        ("index.md", "[gone](gone.md)", "[gone](gone.md)"),
        ("index.md", "```sh\n[x](../setup.py)\n```\n", "```sh\n[x](../setup.py)\n```\n"),
    ],
)
def test_links_by_hand(page: str, before: str, after: str) -> None:
    assert hooks.links_of_the_site(before, page) == after


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    if missing := [name for name in TOOLS if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'tagsds[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(site)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    for page in SOURCES:
        html = (tmp_path / page).with_suffix(".html").read_text()
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"?(?:https?:)?//", html), f"{page} loads from another host"
    reference = (tmp_path / "reference.html").read_text()
    assert 'id="tagsds.losses.ranking.triplet"' in reference and "margin + s(hard) - s(true)" in reference
    assert "synthetic.refills" in (tmp_path / "settings.html").read_text()
    assert not (tmp_path / "hooks.py").exists() and not (tmp_path / "notebook_page.py").exists()


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (["[gone](gone.md)", "[gone](train.md#no-such-heading)"], ["'gone.md'", "'train.md#no-such-heading'", "with 2 warnings"]),
        (["::: tagsds.no_such_module"], ["tagsds.no_such_module"]),
    ],
    ids=["links", "name"],
)
def test_a_broken_link_or_name_ends_the_build(faults: list[str], said: list[str], tmp_path: Path) -> None:
    for name in ("docs", "slurm", "preprocess", "ds_configs", "benchmarks", "tagsds"):
        if name in ("docs", "tagsds"):
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (tmp_path / name).symlink_to(ROOT / name)
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "docs" / "data.md").open("a") as page:
        page.writelines(f"\n{fault}\n" for fault in faults)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    printed = done.stdout + done.stderr
    assert done.returncode != 0 and "Aborted" in printed
    assert [words for words in said if words not in printed] == []
