"""YAML files of settings: recipes, and the config.yaml that a run leaves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tagsds.errors import UserError
from tagsds.files import read_text

MOST_NODES = 20_000  # keys and values, with each use of an alias counted as what it stands for
DEEPEST = 40


def read_settings(path: Path, remedy: str = "correct it") -> DictConfig:
    """The mapping in a YAML file. UserError for whatever is none, and for one that is nested too deeply or that grows without bound
    through its aliases."""
    text = read_text(path, remedy)
    try:
        check_size(text)
        settings = OmegaConf.load(io.StringIO(text))
        check_numbers(OmegaConf.to_container(settings))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())[:300].rstrip('.')}; {remedy}.") from error
    if not isinstance(settings, DictConfig):
        raise UserError(f"{path} holds no mapping of keys to values; {remedy}.")
    return settings


def check_numbers(value: Any) -> None:
    """ValueError for a whole number of more than 63 bits: some of them cannot even be printed."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            check_numbers(one)
    elif isinstance(value, int) and abs(value) >> 63:
        raise ValueError("a whole number in it has more than 63 bits")


def check_size(text: str) -> None:
    """ValueError for more than MOST_NODES nodes or DEEPEST levels. The parser's events are counted, before anything is built."""
    sizes: dict[str, int] = {}  # of what an anchor stands for
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchor and nodes of each collection that is not closed yet
    for event in yaml.parse(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) > DEEPEST:
                raise ValueError(f"values are nested more than {DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, nodes = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, nodes = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} stands before its anchor, or inside of it")
            anchor, nodes = None, sizes[event.anchor]
        else:
            continue
        if anchor is not None:
            sizes[anchor] = nodes
        open_[-1] = (open_[-1][0], open_[-1][1] + nodes)
        if open_[-1][1] > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES} values")
