"""What a training run leaves behind: config, log, results, examples; any of them may be absent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tagsds.errors import UserError
from tagsds.formats.results import read_results

Series = dict[int, float]  # step -> value


@dataclass
class Run:
    """`log`: tag -> step -> value; `results`: one a results-*.json, by file name; `seconds` of logged training."""

    folder: Path
    name: str
    config: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Series] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0


def read_run(folder: Path, name: str | None = None) -> Run:
    """UserError for a folder that is none of ours, or for a damaged file."""
    if not folder.is_dir():
        raise UserError(f"run {folder} does not exist; give the folder of a training run.")
    run = Run(folder, name or folder.resolve().name)
    run.results = [read_results(path) for path in sorted(folder.glob("results-*.json"))]
    if (folder / "config.yaml").is_file():
        run.config = _read_yaml(folder / "config.yaml")
    if (folder / "examples.json").is_file():
        run.examples = _read_json(folder / "examples.json")
    if (folder / "log.jsonl").is_file():
        run.log, run.steps, run.seconds = read_log(folder / "log.jsonl")
    if not (run.results or run.log or run.examples):
        raise UserError(
            f"run {folder} holds neither results-*.json nor log.jsonl nor examples.json; "
            "give a training run's folder, after training or tagsds-evaluate."
        )
    return run


def read_runs(folders: list[Path]) -> list[Run]:
    """Runs under distinct names: a name that occurs twice gets its parent folder in front."""
    names = [folder.resolve().name for folder in folders]
    parents = [f"{folder.resolve().parent.name}/{name}" for folder, name in zip(folders, names, strict=True)]
    chosen = [parent if names.count(name) > 1 else name for name, parent in zip(names, parents, strict=True)]
    return [read_run(folder, name) for folder, name in zip(folders, chosen, strict=True)]


def read_log(path: Path) -> tuple[dict[str, Series], int, float]:
    """log.jsonl -> (tag -> step -> value, last step, seconds).

    A step that occurs twice (a resumed run repeats some) counts as logged last; a last line cut short by a kill is left
    out, any other bad line is an error. `time_s` begins again with a resumption, so rises are added up.
    """
    log: dict[str, Series] = {}
    last_step, seconds, last_time = 0, 0.0, 0.0
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not a logged step ({error}); remove the line.") from error
        last_step = max(last_step, step)
        now = entry.get("time_s")
        if isinstance(now, (int, float)):
            seconds += now - last_time if now >= last_time else now
            last_time = now
        for tag, value in entry.items():
            if tag not in ("step", "time_s") and isinstance(value, (int, float)) and not isinstance(value, bool):
                log.setdefault(tag, {})[step] = float(value)
    return {tag: dict(sorted(series.items())) for tag, series in sorted(log.items())}, last_step, seconds


def setting(config: dict[str, Any], *names: str) -> str | None:
    """The first of the keys (dots for depth) that the config has as a plain value."""
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, (str, int, float)):
            return str(value)
    return None


def data_folder(run: Run) -> Path | None:
    """The shards a run was evaluated or trained on, as far as it says so and they are still there."""
    named = [result.get("provenance", {}).get("data") for result in run.results]
    named.append(setting(run.config, "data_folder"))
    for name in named:
        if name and (Path(name) / "manifest.json").is_file():
            return Path(name)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); remove it, or train again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no table; remove it, or train again.")
    return content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} cannot be read as YAML ({error}); restore it.") from error
    return content if isinstance(content, dict) else {}
