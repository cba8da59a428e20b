"""Whole experiments: pack, pre-train, fine-tune each stage through the `deepspeed` launcher, evaluate, report.

    python -m tagsds.experiment demo --output runs/demo
    python -m tagsds.experiment world --output runs/world --seeds 1 2
    python -m tagsds.experiment coco-boxes --source FOLDER --pairs FOLDER --output runs/coco-boxes --seeds 1 2
    python -m tagsds.experiment coco-boxes --set late ...           baseline and TAGS-DC in equal time
    python -m tagsds.experiment coco-boxes --set parts ...          TAGS-DC's end of it without one part or another
    python -m tagsds.experiment coco-boxes --set matchers ...       VSRN, SCAN, BFAN with and without AOQ
    python -m tagsds.experiment coco-boxes --set join ...           the encoder with AOQ's candidates and losses
    python -m tagsds.experiment coco-boxes --set full --ranks 1 ... twice the width, taught by the small baselines of all seeds
    python -m tagsds.experiment coco-boxes --set full-late --ranks 1 ...    and there, too, in equal time

Whatever lies finished in the output folder is reused, and said so; what was interrupted is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tagsds.config import load_config
from tagsds.errors import UserError, command
from tagsds.evaluators.blind import COLUMNS as BLIND_COLUMNS
from tagsds.evaluators.likelihood import COLUMNS as OWN_COLUMNS
from tagsds.experiment_stages import MATCHER_KINDS, SETS, Stage, asked_of, stages
from tagsds.files import read_json
from tagsds.formats.results import read_results
from tagsds.prepare import different_settings
from tagsds.reporting.pictures import check_directory
from tagsds.reporting.table import comparison_table
from tagsds.shipped import checkout

ROOT = Path(__file__).resolve().parent.parent
RECALLS = ("text_r1", "text_r5", "text_r10", "image_r1", "image_r5", "image_r10", "rsum")
FURTHER_RECALLS = {"query_bank": "without hubs", "rescored": "rescored", "rescored_query_bank": "rescored without hubs"}


class Experiment:
    """Runs the steps in order; every step leaves a file behind by which the next call knows that it is done."""

    def __init__(self, output: Path, ranks: int, port: int, seeds: Sequence[int] = (1,)) -> None:
        on_gpus = torch.cuda.device_count()
        self.output, self.ranks, self.port = output, min(ranks, on_gpus) if on_gpus else ranks, port
        self.seeds, self.training_seconds = seeds, 0.0
        output.mkdir(parents=True, exist_ok=True)

    def pack(self, arguments: list[str]) -> Path:
        """The packer itself knows whether the corpus is there, and made from the same sources."""
        data = self.output / "data"
        say(f"corpus in {data}")
        call([sys.executable, "-m", "preprocess.pack", *arguments, "--out", str(data)])
        return data

    def train(self, stage: Stage, data: Path, folder: Path, seed: int) -> Path:
        run = folder / stage.name
        overrides = [f"seed={seed}", *stage.overrides]
        if stage.teachers:
            overrides.append(f"distil.teachers=[{','.join(map(str, self.teachers(stage.teachers)))}]")
        if stage.candidates:
            overrides.append(f"offline.candidates={self.mine(folder / stage.candidates, data)}")
        if (run / "export" / "model.safetensors").is_file():
            if changed := different_settings(run / "config.yaml", load_config(stage.recipe, overrides)):
                keys = ", ".join(changed)
                raise UserError(f"{run} was trained with other settings ({keys}); remove it or name another --output.")
            say(f"reusing the finished run {run}")
            return run
        if stage.init:
            overrides.append(f"init={start_folder(folder / stage.init)}")
        say(f"training {run} (recipe {stage.recipe}, {self.ranks} rank(s))" + (" from its checkpoint" if run.is_dir() else ""))
        begin = time.perf_counter()
        arguments = ["--deepspeed_config", "ds_configs/zero1.json", "--recipe", stage.recipe, "--data", str(data)]
        self.launch("tagsds/train.py", [*arguments, "--output", str(run), "--resume", *overrides])
        self.training_seconds += time.perf_counter() - begin
        return run

    def teachers(self, stage: str) -> list[Path]:
        """The finished runs of a stage, of all seeds."""
        runs = [self.output / f"seed{seed}" / stage for seed in self.seeds]
        for run in runs:
            if not (run / "export").is_dir():
                raise UserError(f"{run} is no finished run; train the teachers of all --seeds first (--set tagsdc).")
        return runs

    def mine(self, run: Path, data: Path) -> Path:
        """Offline candidates of a matcher's run; the miner knows whether they are there, and whole."""
        folder = run / "candidates"
        if not (run / "export").is_dir():
            raise UserError(f"{run} is no finished run; train the matchers first (--set matchers).")
        if not (folder / "candidates.json").is_file():
            say(f"mining candidates with {run}")
            self.launch("tagsds/mine.py", ["--checkpoint", str(run), "--data", str(data), "--output", str(folder)])
        return folder

    def evaluate(self, run: Path, data: Path, arguments: list[str]) -> dict[str, Any]:
        results, asked = run / "results-test.json", run / "evaluated-test.json"  # with which arguments
        weights = run / "export" / "model.safetensors"
        known = results.is_file() and asked.is_file() and read_json(asked) == arguments
        if known and results.stat().st_mtime > weights.stat().st_mtime:
            say(f"reusing {results}")
        else:
            say(f"evaluating {run} on the test split")
            self.launch("tagsds/evaluate.py", ["--checkpoint", str(run), "--data", str(data), "--split", "test", *arguments])
            asked.write_text(json.dumps(arguments))
        return read_results(results)

    def launch(self, script: str, arguments: list[str]) -> None:
        """Through the deepspeed launcher, as a user would."""
        self.port += 1
        launcher = str(Path(sys.executable).parent / "deepspeed")
        ranks = ["--num_gpus", str(self.ranks), "--master_port", str(self.port), "--log_level", "error"]
        env = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        if not torch.cuda.is_available():
            threads = max(1, (os.cpu_count() or 1) // self.ranks)
            env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
        call([launcher, *ranks, script, *arguments], env)


def start_folder(path: Path) -> Path:
    """`export-stage2` stands for the one intermediate export of a run."""
    if path.name != "export-stage2":
        return path
    found = sorted(folder for folder in path.parent.glob("export-step*") if folder.name[11:].isdigit())
    if not found:
        raise UserError(f"{path.parent} holds no export-step folder; its recipe must set log.export_at.")
    return found[-1]


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def call(arguments: list[str], env: dict[str, str] | None = None) -> None:
    done = subprocess.run(arguments, cwd=ROOT, env=env)
    if done.returncode:
        raise UserError(f"'{' '.join(arguments[:6])} ...' ended with status {done.returncode}; its message is above.")


def run_all(experiment: Experiment, runs: list[Stage], data: Path, seeds: list[int], evaluation: list[str]) -> dict[str, Any]:
    """All stages of all seeds: {stage: {seed: results}}."""
    rows: dict[str, Any] = {}
    blind_to_pictures = next((stage.name for stage in runs if stage.recipe.endswith("-pretrain")), "pretrain")
    for seed in seeds:
        folder = experiment.output / f"seed{seed}"
        for stage in runs:
            run = experiment.train(stage, data, folder, seed)
            judges = "--pairs" in evaluation and (folder / blind_to_pictures / "export").is_dir()
            blind = ["--blind", str(folder / blind_to_pictures)] if judges else []
            if stage.evaluated:
                rows.setdefault(stage.name, {})[str(seed)] = experiment.evaluate(run, data, [*asked_of(stage, evaluation), *blind])
    return rows


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    """Per stage and figure: the value of each seed, mean and standard deviation (0 for one seed)."""
    out: dict[str, Any] = {}
    for stage, by_seed in rows.items():
        figures: dict[str, list[float]] = {}
        for results in by_seed.values():
            for name, value in results.get("recalls", {}).items():
                figures.setdefault(name, []).append(value)
            for kind, edit in results.get("edits", {}).items():
                figures.setdefault(f"edits/{kind}", []).append(edit["accuracy"])
            if edits := results.get("edits"):
                mean = statistics.fmean(edit["accuracy"] for edit in edits.values())
                figures.setdefault("edits/mean", []).append(mean)
            for entry, title in FURTHER_RECALLS.items():
                for name in RECALLS if entry in results else ():
                    figures.setdefault(f"{title}/{name}", []).append(results[entry][name])
            for name, columns in {"blind": BLIND_COLUMNS, "likelihood": OWN_COLUMNS}.items():
                for kind, edit in results.get(name, {}).items():
                    for key, title in columns.items():
                        if key != "model" and edit.get(key) is not None:  # the model's own are the edits above
                            figures.setdefault(f"{title}/{kind}", []).append(edit[key])
        out[stage] = {
            name: {"seeds": v, "mean": statistics.fmean(v), "std": statistics.stdev(v) if len(v) > 1 else 0.0}
            for name, v in figures.items()
        }
    return out


def finish(
    experiment: Experiment, corpus: str, which: str, data: Path, rows: dict[str, Any], seeds: list[int], pictures: Path | None
) -> None:
    suffix = "" if which == "tagsdc" else f"-{which}"
    results = experiment.output / f"results{suffix}.json"
    table = summary(rows)
    results.write_text(json.dumps({"corpus": corpus, "seeds": seeds, "stages": table}, indent=1))
    folder = experiment.output / f"seed{seeds[0]}"
    runs = [str(folder / stage.name) for stage in stages(corpus, which) if stage.evaluated or which == "tagsdc"]
    report = experiment.output / f"report{suffix}.html"
    options = ["--data", str(data), *(["--pictures", str(pictures.resolve())] if pictures else [])]
    call([sys.executable, "-m", "tagsds.report", *runs, *options, "--output", str(report)])
    print(comparison_table(table))
    trained = f"trained for {experiment.training_seconds / 60:.1f} minutes; " if experiment.training_seconds else ""
    say(f"{trained}figures in {results}, report in {report}")
    if page := page_command(folder, data, pictures):
        say(f"to search, proofread and write in the browser: {page}")


def page_command(folder: Path, data: Path, pictures: Path | None = None) -> str | None:
    """The command that opens the page on what was trained (the strongest encoder, with a matcher where there is one), by paths that
    are there; None without an encoder."""
    finished = {run.name: run for run in folder.glob("*") if (run / "export" / "model.safetensors").is_file()}
    encoder = next((finished[name] for name in ("tagsdc", "tags", "baseline") if name in finished), None)
    if encoder is None:
        return None
    matcher = next((finished[name] for kind in MATCHER_KINDS for name in (f"{kind}-2-adaptive", kind) if name in finished), None)
    program = Path(sys.executable).parent / "tagsds-serve"
    words = [shown(program) if program.is_file() else "tagsds-serve", "--checkpoint", shown(encoder), "--data", shown(data)]
    words += ["--matcher", shown(matcher)] if matcher else []
    return shlex.join([*words, *(["--pictures", shown(pictures)] if pictures else [])])


def shown(path: Path) -> str:
    """Relative to the folder of the shell where the path lies in it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def run() -> None:
    parser = argparse.ArgumentParser(prog="python -m tagsds.experiment", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("experiment", choices=("demo", "world", "coco-boxes"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="tagsdc", dest="which", help="which runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--source", type=Path, help="coco-boxes: captions_val2017.json, boxes_val2017.txt, coco.names, splits.json")
    parser.add_argument("--pairs", type=Path, help="coco-boxes: folder of SugarCrepe's JSON files")
    parser.add_argument("--pictures", type=Path, help="folder of picture files by image key, for the report")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--port", type=int, default=29600)
    args = parser.parse_args()
    if checkout() is None:
        raise UserError(f"experiments run from a checkout of the project, and {ROOT} is none; clone it and run `make demo` there.")
    if args.pictures is not None:
        check_directory(args.pictures)
    corpus = "coco-boxes" if args.experiment == "coco-boxes" else "world"
    if corpus == "world" and args.which in ("late", "parts", "full", "full-late"):
        raise UserError(f"--set {args.which} has recipes for coco-boxes alone; name that experiment, or leave --set away.")
    if corpus == "world":
        source, evaluation = ["world"], ["--pairs", str((args.output / "data" / "edits" / "test").resolve())]
    else:
        source, evaluation = coco_boxes_source(args.source, args.pairs)
    experiment = Experiment(args.output.resolve(), args.ranks, args.port, args.seeds)
    data = experiment.pack(source)
    rows = run_all(experiment, stages(corpus, args.which), data, args.seeds, evaluation)
    finish(experiment, corpus, args.which, data, rows, args.seeds, args.pictures)


def coco_boxes_source(folder: Path | None, pairs: Path | None) -> tuple[list[str], list[str]]:
    """Arguments of the packer and of the evaluation on test-1k."""
    if folder is None or not folder.is_dir():
        raise UserError("coco-boxes needs the captions and boxes: make coco-boxes DATA=<folder with captions_val2017.json ...>")
    files = {"--captions": "captions_val2017.json", "--boxes": "boxes_val2017.txt", "--split": "splits.json"}
    files["--class-names"] = "coco.names"
    for name in files.values():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist; coco-boxes needs {', '.join(files.values())} in one folder.")
    source = ["coco", "--long-captions", "truncate"]
    for option, name in files.items():
        source += [option, str((folder / name).resolve())]
    edits = ["--pairs", str(pairs.resolve()), "--likelihood"] if pairs else []
    return source, ["--first", "1000", "--query-bank", "--rescore", *edits]


main = command(run)

if __name__ == "__main__":
    main()
