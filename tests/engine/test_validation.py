"""A trainer that looks: what it sees is right, what it keeps is the best, and looking changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tagsds.data.shards import load_bank
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.protocol import first_captions
from tagsds.models.load import find_checkpoint, load_model
from tagsds.reporting.runs import read_run
from tagsds.reporting.sections import curve_groups
from tagsds.scoring.registry import scorer_of
from tests import launch
from tests.golden.record import alone

SCRIPT = Path(__file__).with_name("validated_runs.py")
NAMES = [
    "watched", "plain", "watched@4", "each-step", "averaged", "averaged@4", "frozen", "frozen@2", "stopped", "stopped@", "still",
    "half", "watched-matcher", "plain-matcher", "listed",
]  # fmt: skip
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of one process; FOLDER/said is what they printed."""
    folder = tmp_path_factory.mktemp("validated")
    environment = alone(dict(os.environ)) | {"PYTHONPATH": str(launch.ROOT)}
    command = [sys.executable, str(SCRIPT), str(world), str(folder), *NAMES]
    done = subprocess.run(command, env=environment, cwd=launch.ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (folder / "said").write_text(done.stdout)
    return folder


def numbers(run: Path, validation: bool | None = None) -> list[dict[str, Any]]:
    """Rows without times and memory; only those of validations (True), or only the others (False)."""
    rows = [r for r in launch.rows(run) if validation is None or validation == any(k.startswith("validate/") for k in r)]
    return [{k: v for k, v in row.items() if k != "time_s" and not k.startswith(("speed/", "memory/"))} for row in rows]


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return ours.keys() == theirs.keys() and all(bool((ours[key] == theirs[key]).all()) for key in ours)


def about(run: Path) -> dict[str, Any]:
    """The state in the last checkpoint."""
    return json.loads((run / "checkpoints" / (run / "checkpoints" / "latest").read_text() / "about.json").read_text())


@pytest.fixture(scope="module")
def runs_of_two(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two ranks."""
    folder = tmp_path_factory.mktemp("validated-by-two")
    names = ["still", "watched-matcher", "plain-matcher", "partitioned", "averaged-in-parts"]
    launch.run_two(SCRIPT, world, folder, *names)
    return folder


@pytest.mark.parametrize(
    ("place", "kind"), [("runs", ""), ("runs", "-matcher"), ("runs_of_two", "-matcher")], ids=["encoder", "batch-norm", "two-ranks"]
)
def test_looking_changes_no_step(request: pytest.FixtureRequest, place: str, kind: str) -> None:
    """BatchNorm's statistics are averaged over the ranks to look, and are each rank's own again."""
    runs = request.getfixturevalue(place)
    plain, watched = runs / f"plain{kind}", runs / f"watched{kind}"
    assert numbers(watched, False) == numbers(plain) and len(numbers(plain)) >= 6
    assert same(watched / "export", plain / "export")
    assert len(numbers(watched, True)) == len(numbers(plain)) // 2


def test_resumed_across_a_validation_equals_undisturbed(runs: Path) -> None:
    assert numbers(runs / "watched-resumed") == numbers(runs / "watched")
    assert same(runs / "watched-resumed" / "export", runs / "watched" / "export")
    assert same(runs / "watched-resumed" / "export-best", runs / "watched" / "export-best")
    assert about(runs / "watched-resumed") == about(runs / "watched")
    assert about(runs / "watched")["true_pairs"] == 8 * 4 and about(runs / "watched")["version"] == 2


def test_the_mean_of_the_weights_by_hand(runs: Path) -> None:
    """By the exports of a run without it; the steps themselves go on from the weights. d = 0.8^2, at first (n + 1) / (n + 10)."""
    assert numbers(runs / "averaged", False) == numbers(runs / "each-step")
    names = ["export-step2", "export-step4", "export-step6", "export"]
    weights = [load_file(runs / "each-step" / name / "model.safetensors") for name in names]
    found = load_file(runs / "averaged" / "export" / "model.safetensors")
    moved = 0.0
    for key in found:
        mean = weights[0][key].double()
        for n, later in enumerate(weights):
            kept = min(0.8**2, (n + 1) / (n + 10))
            mean = kept * mean + (1 - kept) * later[key].double()
        assert torch.allclose(found[key].double(), mean, rtol=1e-6, atol=1e-8), key
        moved = max(moved, float((found[key] - weights[-1][key]).abs().max()))
    assert moved > 1e-5


def test_a_resumed_mean_equals_an_undisturbed_one(runs: Path) -> None:
    assert numbers(runs / "averaged-resumed") == numbers(runs / "averaged")
    for name in ("export", "export-best"):
        assert same(runs / "averaged-resumed" / name, runs / "averaged" / name)


def test_a_frozen_writer_is_the_same_after_resuming(runs: Path) -> None:
    """It is in no checkpoint: it is made again from what the stage began with."""
    assert numbers(runs / "frozen-resumed") == numbers(runs / "frozen")
    assert same(runs / "frozen-resumed" / "export", runs / "frozen" / "export")


def figures_of(folder: Path, world: Path, images: int) -> dict[str, float]:
    """Recalls of an exported folder on the first dev images, without validation's code."""
    bank, _ = load_bank(world, "dev", images)
    captions = first_captions(bank, images, 5)
    matrix = scorer_of(load_model(folder)).matrix(bank, torch.arange(images), captions, progress=False)
    return recalls(matrix, bank.image_of_caption[captions]).as_dict()


@pytest.mark.parametrize(
    ("place", "name"),
    [("runs", "watched"), ("runs", "averaged"), ("runs_of_two", "averaged-in-parts"), ("runs", "half"),
     ("runs", "watched-matcher"), ("runs_of_two", "watched-matcher"),
     ("runs_of_two", "partitioned")],
)  # fmt: skip
def test_export_best_is_the_best_and_scores_what_was_seen(
    request: pytest.FixtureRequest, world: Path, place: str, name: str
) -> None:
    """In half precision and under ZeRO-3 too: what is scored are the optimiser's fp32 weights, as exported."""
    runs = request.getfixturevalue(place)
    seen = numbers(runs / name, True)
    best = max(seen, key=lambda row: row["validate/recalls/rsum"])  # the first of equal ones
    state = about(runs / name)
    assert (state["best"], state["best_step"]) == (best["validate/recalls/rsum"], best["step"])
    folder, home = find_checkpoint(runs / name / "export-best")
    assert home.resolve() == (runs / name).resolve()
    found = figures_of(folder, world, 6)
    assert {k: v for k, v in best.items() if k != "step"} == {
        f"validate/recalls/{k}": pytest.approx(v) for k, v in found.items() if f"validate/recalls/{k}" in best
    }
    card = json.loads((folder / "card.json").read_text())["recipe"]
    assert card["steps"].startswith(f"{best['step']} of ")
    kept = card["kept as the best of its validations"]
    assert kept == f"{state['best']:.2f} (recalls/rsum of the first 6 images of dev)"


def test_patience_ends_a_run_and_resuming_does_not_go_on(runs: Path) -> None:
    """Figures 1, 3, 2, 3, 2.5 at steps 2 to 10: the best is that of step 4, the third without a better one that of step 10."""
    for run in (runs / "stopped", runs / "stopped-resumed"):
        state = about(run)
        assert (state["step"], state["best"], state["best_step"], state["stopped"]) == (10, 3.0, 4, True)
        assert [row["validate/scripted/figure"] for row in numbers(run, True)] == [1.0, 3.0, 2.0, 3.0, 2.5]
        assert [row["step"] for row in numbers(run, False)] == list(range(1, 11))
        card = json.loads((run / "export-best" / "card.json").read_text())["recipe"]
        assert card["steps"] == "4 of 20" and (run / "examples.json").is_file()
        assert json.loads((run / "export" / "card.json").read_text())["recipe"]["steps"] == "10 of 20"
    said = (runs / "said").read_text()
    assert said.count("stopped after 10 steps, 3 validations without a better one; best scripted/figure") == 2


def test_a_shortlist_that_holds_everything_gives_the_exact_figures(runs: Path) -> None:
    """30 of each query: all captions of the 6 images, and more than all images."""
    listed, exact = numbers(runs / "listed", True), numbers(runs / "watched", True)
    assert [{key: row[key] for key in exact[0]} for row in listed] == exact
    assert "validate/shortlist/recalls/rsum" in listed[0], "the matcher alone"
    assert same(runs / "listed" / "export", runs / "plain" / "export")


def test_two_ranks_see_what_one_sees(runs: Path, runs_of_two: Path) -> None:
    """Rate 0: the weights are those of the start."""
    one, two = numbers(runs / "still", True), numbers(runs_of_two / "still", True)
    assert len(one) == 1 and "validate/recalls/rsum" in one[0] and one == two


def test_the_report_shows_its_curve(runs: Path) -> None:
    run = read_run(runs / "watched")
    assert list(run.log["validate/recalls/rsum"]) == [2, 4, 6, 8] and len(run.log["loss/total"]) == 8
    group = curve_groups([run], {run.name: 1})[0]
    assert group["title"].startswith("Validation") and not group["folded"]
    assert group["panels"][0]["tag"] == "validate/recalls/rsum"


def test_tensorboard_shows_the_run_by_its_name(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    shown = EventMultiplexer().AddRunsFromDirectory(str(runs))
    shown.Reload()
    assert set(shown.Runs()) == {path.name for path in runs.iterdir() if path.is_dir()}, "a run a folder, and none beside"
    tags = shown.Runs()["watched"]
    assert {"validate/recalls/rsum", "loss/total"} <= set(tags["scalars"])
    assert "custom_scalars__config__" in tags["tensors"]
    plugins = shown.PluginRunToTagToContent("hparams")["watched"]
    assert {"_hparams_/session_start_info", "_hparams_/experiment"} <= set(plugins)
