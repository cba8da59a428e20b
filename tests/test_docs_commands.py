"""The commands that the pages show: each option, recipe, DeepSpeed file and setting in them exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest

from tagsds.commands_page import COMMANDS, parser_of, subparsers
from tagsds.config import load_config
from tagsds.shipped import DS_CONFIGS, shipped

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "slurm").glob("*.md")])
GENERATED = {"commands.md", "settings.md"}
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
MODULES = {name: f"tagsds-{name}" for name in ("train", "evaluate", "mine", "write", "report")}
LAUNCHED = re.compile(r"(?:tagsds/|tagsds\.)(\w+)(?:\.py)?$")
ELSEWHERE = ("...", "FILE", "NAME", "RUN", "FOLDER", "DIR", "SHARDS")  # stand for something, in capitals or dots


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks and pieces of code type that begin a command of the package."""
    for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("!")
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for line in re.findall(r"^    (.+)$", text, re.MULTILINE):
        yield line.strip()


def words_of(line: str) -> tuple[str, list[str]] | None:
    """The name in COMMANDS and the words behind it; None for a line that is no command of the package."""
    try:
        words = shlex.split(line.replace("|", " ").replace("[", " ").replace("]", " "), comments=True)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    for place, word in enumerate(words):
        if word in COMMANDS and place == 0:
            return word, words[1:]
        found = LAUNCHED.search(word)
        if found and words[0] in ("deepspeed", "torchrun", "python", "srun"):
            name = MODULES.get(found[1], f"python -m tagsds.{found[1]}")
            return (name, words[place + 1 :]) if name in COMMANDS else None
    return None


def test_commands_are_found_in_pages() -> None:
    assert words_of("DS_ACCELERATOR=cpu deepspeed --num_gpus 2 tagsds/train.py --recipe x") == ("tagsds-train", ["--recipe", "x"])
    assert words_of("torchrun --nproc-per-node 8 -m tagsds.write --data SHARDS") == ("tagsds-write", ["--data", "SHARDS"])
    assert words_of("tagsds-mine --data d  # finds") == ("tagsds-mine", ["--data", "d"])
    assert words_of("tagsds/losses") is None and words_of("make demo") is None
    found = {page.name: [command for line in commands(page.read_text()) if (command := words_of(line))] for page in PAGES}
    assert len(found["train.md"]) > 8 and len(found["data.md"]) > 8 and len(found["evaluate.md"]) > 1


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_are_right(page: Path) -> None:
    wrong = []
    for line in commands(page.read_text()):
        if (found := words_of(line)) is not None:
            wrong += [f"{line}: {what}" for what in faults(*found)]
    assert wrong == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_imports_of_a_page_are_right(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in re.findall(r"^(?:from (?:tagsds|preprocess)[\w.]* import [\w, ]+|import tagsds)$", block, re.MULTILINE):
            exec(line, {})


def faults(name: str, words: list[str]) -> list[str]:
    """What the command would refuse before it reads a file."""
    parser = parser_of(import_module(COMMANDS[name]).main)
    options = set(parser._option_string_actions)
    if name == "tagsds-pack":
        options.add("--verify")  # looked for before the parser is made
    sources = subparsers(parser)
    if sources and words and words[0] in sources:
        options |= set(sources[words[0]]._option_string_actions)
    said = [f"no option {word}" for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    values = dict(pairwise(words))
    recipe, deepspeed = values.get("--recipe", ""), values.get("--deepspeed_config", "")
    settings = [word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*=\S+", word)] if "--recipe" in options else []
    if recipe and recipe.upper() != recipe and not recipe.endswith((".yaml", "...")) and not set(recipe) & set("{}$<"):
        try:
            load_config(recipe, [word for word in settings if not word.endswith(ELSEWHERE) and not set(word) & set("{}$<|")])
        except Exception as error:
            said.append(str(error))
    name_of_file = Path(deepspeed).stem
    if name_of_file and not set(deepspeed) & set("{}$<") and deepspeed.upper() != deepspeed and not deepspeed.endswith("..."):
        if not (shipped(DS_CONFIGS) / f"{name_of_file}.json").is_file():
            said.append(f"no DeepSpeed file {deepspeed}")
    return said
