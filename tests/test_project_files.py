"""The files that a forge, a library or pre-commit reads say what the project does."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_citation_names_the_version_and_the_three_papers() -> None:
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= about.keys()  # what the format demands
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())
    assert version and about["version"] == version[1] and about["license"] == "Apache-2.0"
    papers = {paper["url"].rpartition("/")[2]: paper for paper in about["references"]}
    assert sorted(papers) == ["1909.11740", "2003.03669", "2111.03349"]
    first = {number: paper["authors"][0]["family-names"] for number, paper in papers.items()}
    assert first == {"1909.11740": "Chen", "2003.03669": "Chen", "2111.03349": "Fan"}
    count = {number: len(paper["authors"]) for number, paper in papers.items()}
    assert count == {"1909.11740": 8, "2003.03669": 3, "2111.03349": 6}
    assert all(paper["title"] and paper["type"] and paper["year"] in (2020, 2022) for paper in papers.values())


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "9. Accepting Warranty" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_forge_runs_what_ci_runs() -> None:
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = flow["jobs"].values()
    assert job["steps"][-1] == {"run": "bash .ci/run"} and flow["permissions"] == {"contents": "read"}
    assert flow[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true


def test_pre_commit_runs_what_make_check_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {re.match(r"\.venv/bin/([\w-]+)", hook["entry"])[1] for hook in repo["hooks"]}  # type: ignore[index]
    rules = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    assert hooks == set(re.findall(r"\$\(BIN\)/([\w-]+)", rules)) == {"ruff", "mypy", "lint-imports"}


def test_the_issue_template_has_a_head() -> None:
    head = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head).keys() >= {"name", "about"}
