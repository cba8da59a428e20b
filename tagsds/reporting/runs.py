"""What a training run leaves behind: config, log, results, examples; any of them may be absent."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tagsds.errors import UserError
from tagsds.files import is_file, read_text
from tagsds.formats.log import step_of
from tagsds.formats.results import read_results
from tagsds.formats.settings_file import read_settings
from tagsds.formats.shape import Of, Table, read_object

Series = dict[int, float]  # step -> value
EXAMPLES = {"scores?": Table([Of(float)]), "negatives?": [Of(dict)]}


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
        run.config = settings_of(folder / "config.yaml")
    if (folder / "examples.json").is_file():
        run.examples = read_object(folder / "examples.json", EXAMPLES, "a run's examples", "remove it, or train again")
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
    lines = read_text(path, "remove it").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            step, entry = step_of(line, path, number)
        except UserError:
            if number == len(lines):
                break
            raise
        last_step = max(last_step, step)
        now = entry.get("time_s")
        if now is not None and is_number(now):
            seconds += now - last_time if now >= last_time else now
            last_time = now
        for tag, value in entry.items():
            if tag not in ("step", "time_s") and is_number(value):
                log.setdefault(tag, {})[step] = float(value)
    return {tag: dict(sorted(series.items())) for tag, series in sorted(log.items())}, last_step, seconds


def settings_of(path: Path) -> dict[str, Any]:
    """config.yaml as plain values."""
    plain = OmegaConf.to_container(read_settings(path, "restore it"))
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def is_number(value: Any) -> bool:
    """A float, or a whole number that fits into one."""
    return type(value) is float or (type(value) is int and abs(value) < 1 << 1000)


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
        if isinstance(name, str) and name and is_file(Path(name) / "manifest.json"):
            return Path(name)
    return None
