"""One self-contained page about one or several runs: recall, losses, scores, rankings and written negatives.

tagsds-report RUN... [--data SHARDS] [--pictures FOLDER] [--output report.html]
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file: imports start at the repository
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from tagsds.errors import UserError, command, first_line
from tagsds.files import check_writable, write_text
from tagsds.reporting import plots, sections
from tagsds.reporting.boxes import boxes_svg, drawn_regions
from tagsds.reporting.pictures import check_directory, data_uri, find_pictures, pictures_of
from tagsds.reporting.runs import Run, data_folder, read_runs

ORDINARY = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError, TemplateError)
"""what a value of another shape leads to where it is shown"""
EMPTY: dict[str, Any] = {"results": [], "examples": {}, "log": {}, "config": {}}
NO_PICTURES = Path(os.devnull)
MOST_NEGATIVES = 6  # captions whose written negatives are shown, a run
MOST_WRITTEN = 6  # sentences of each


class Shown(NamedTuple):
    """How an image is shown: by its picture (a data URI), or drawn from its boxes (SVG)."""

    uri: str = ""
    drawing: Markup = Markup()


def rankings(runs: Sequence[Run], pictures: dict[str, Shown]) -> list[dict[str, Any]]:
    """Captions with the top five images of the last run that ranked them, and the true image's rank in every run."""
    evaluated = [(run, result) for run in runs for result in run.results if result.get("examples")]
    if not evaluated:
        return []
    last_run, last = evaluated[-1]
    identity = (last["split"], last.get("images"))
    others = {
        run.name: {e["caption"]: e["rank"] for e in result["examples"]}
        for run, result in evaluated
        if (result["split"], result.get("images")) == identity
    }
    out = []
    for example in last["examples"]:
        shown = [top | {"picture": pictures.get(top["image"])} for top in example["top"]]
        below = None if any(top["true"] for top in example["top"]) else pictures.get(example["image"])
        ranks = [(name, table[example["caption"]]) for name, table in others.items() if example["caption"] in table]
        out.append(example | {"top": shown, "below": below, "ranks": ranks, "run": last_run.name})
    return out


def negatives(run: Run, pictures: dict[str, Shown]) -> list[dict[str, Any]]:
    """Captions with the sentences written against them, the hardest first."""
    out = []
    for entry in run.examples.get("negatives", [])[:MOST_NEGATIVES]:
        written = sorted(entry.get("written", []), key=lambda sentence: -sentence["score"])[:MOST_WRITTEN]
        sentences = [s | {"words": [word_of(word) for word in s["words"]]} for s in written]
        out.append(entry | {"written": sentences, "picture": pictures.get(entry["image"])})
    return out


def word_of(word: dict[str, Any]) -> dict[str, Any]:
    """A word with defaults for what its run does not know; '##' pieces are joined to the word before them.

    A correction is shown where the word was replaced or is suspected, not under every word; '=' where the model would
    leave the word as it is.
    """
    text = word["text"]
    suspicion = word.get("suspicion")
    correction = word.get("correction")
    if not (word.get("replaced") or (suspicion or 0) > 0.5):
        correction = None
    return {
        "text": text.removeprefix("##"),
        "joined": text.startswith("##"),
        "replaced": bool(word.get("replaced")),
        "suspicion": None if suspicion is None else min(max(float(suspicion), 0.0), 1.0),
        "correction": "=" if correction == text else correction,
    }


def collect_pictures(runs: Sequence[Run], data: Path | None, directory: Path | None = None) -> dict[str, Shown]:
    """What the page shows of every image, by key: the picture in `directory`, that in the shards, or the boxes in the shards.
    Images of which none is there are left out."""
    keys: dict[Path | None, dict[str, None]] = {}
    splits: dict[Path | None, list[str]] = {}
    for run in runs:
        folder = data or data_folder(run)
        wanted = keys.setdefault(None if folder == NO_PICTURES else folder, {})
        for result in run.results:
            splits.setdefault(folder, []).append(result["split"])
            for example in result.get("examples", []):
                wanted |= dict.fromkeys([example["image"], *(top["image"] for top in example["top"])])
        wanted |= dict.fromkeys(entry["image"] for entry in run.examples.get("negatives", [])[:MOST_NEGATIVES])
    shown: dict[str, Shown] = {}
    for folder, wanted in keys.items():
        if directory is not None:
            shown |= embedded(pictures_of(directory, (key for key in wanted if key not in shown)))
        if folder is not None:
            named = splits.get(folder, [])
            shown |= embedded(find_pictures(folder, [key for key in wanted if key not in shown], named))
            drawn = drawn_regions(folder, [key for key in wanted if key not in shown], named)
            shown |= {key: Shown(drawing=Markup(boxes_svg(*regions))) for key, regions in drawn.items()}
    return shown


def embedded(pictures: dict[str, bytes]) -> dict[str, Shown]:
    """Those that can be decoded, as data URIs."""
    return {key: Shown(uri) for key, picture in pictures.items() if (uri := data_uri(picture))}


def render(runs: Sequence[Run], data: Path | None = None, directory: Path | None = None) -> str:
    """The page. `data`: shards in place of those the runs name; `directory`: picture files by key."""
    colours = {run.name: plots.colour(number) for number, run in enumerate(runs)}
    pictures = collect_pictures(runs, data, directory)
    environment = Environment(
        loader=PackageLoader("tagsds"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        title=", ".join(run.name for run in runs),
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=sections.run_rows(runs, colours),
        colours=colours,
        evaluations=sections.evaluations(runs, colours),
        curves=sections.curve_groups(runs, colours),
        distributions=sections.distributions(runs),
        drawn=any(shown.drawing for shown in pictures.values()),
        negatives_scored=any(run.examples.get("scores") for run in runs),
        rankings=rankings(runs, pictures),
        negatives=[(run.name, found) for run in runs if (found := negatives(run, pictures))],
        sources=[(f"{run.name}, split {result['split']}", source_of(result)) for run in runs for result in run.results],
    )


def source_of(result: dict[str, Any]) -> str:
    """Where an evaluation's numbers come from, as indented JSON."""
    return json.dumps(result.get("provenance", {}), indent=2, ensure_ascii=False)


def write_report(folders: Sequence[Path], output: Path, data: Path | None = None, pictures: Path | None = None) -> None:
    """Read the runs and write the page; nothing is written where a run cannot be read. `data` and `pictures` as in `render`."""
    if data is not None and not (data / "manifest.json").is_file():
        raise UserError(f"--data {data} holds no manifest.json; give a folder of packed shards.")
    if pictures is not None:
        check_directory(pictures)
    check_writable(output, folder=False)
    runs = read_runs(list(folders))
    try:
        page = render(runs, data, pictures)
    except ORDINARY as error:
        raise damaged(runs, error) from error
    write_text(output, page)


def damaged(runs: Sequence[Run], error: Exception) -> UserError:
    """Names the file whose contents cannot be shown: the one of which alone no page can be made either."""
    parts = [
        (run.folder / name, replace(run, **dict(EMPTY, **{kind: value})))
        for run in runs
        for kind, files in {"results": run.results, "examples": [run.examples], "log": [run.log], "config": [run.config]}.items()
        for name, value in named(run, kind, files)
    ]
    for path, part in parts:
        try:
            render([part], NO_PICTURES)
        except ORDINARY as found:
            return UserError(f"{path} holds values that cannot be shown ({first_line(found)}); make it again, or move it away.")
    names = ", ".join(str(run.folder) for run in runs)
    return UserError(f"a page of {names} cannot be made ({first_line(error)}); leave one of them out.")


def named(run: Run, kind: str, values: list[Any]) -> list[tuple[str, Any]]:
    """File name and value of each file of a kind, as fields of a Run have them."""
    if kind == "results":
        files = [path.name for path in sorted(run.folder.glob("results-*.json"))]
        return [(name, [value]) for name, value in zip(files, values)]
    return [({"examples": "examples.json", "log": "log.jsonl", "config": "config.yaml"}[kind], values[0])]


def main(arguments: Sequence[str] | None = None) -> None:
    """tagsds-report."""
    parser = argparse.ArgumentParser(prog="tagsds-report", description="An HTML page about one or several runs.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="training runs, in the order of the stages")
    parser.add_argument("--data", type=Path, help="shards with the pictures (otherwise those the runs name)")
    parser.add_argument("--pictures", type=Path, help="folder of picture files by image key, for shards without pictures")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    options = parser.parse_args(arguments)

    def body() -> None:
        write_report(options.runs, options.output, options.data, options.pictures)
        print(f"written to {options.output} ({options.output.stat().st_size / 2**20:.1f} MiB)")

    command(body)()


if __name__ == "__main__":
    main()
