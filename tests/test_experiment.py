"""The experiments' stages: every recipe and setting is one that training takes, and what a stage starts from comes before it."""

import pytest

from tagsds import experiment
from tagsds.config import load_config
from tagsds.engine.build import learning_rate
from tagsds.errors import UserError
from tagsds.experiment import Experiment, page_command, run_all, start_folder, summary
from tagsds.experiment_stages import Stage, asked_of, stages
from tagsds.objectives import OBJECTIVES

RECIPES = [("world", "tagsdc"), ("coco-boxes", "tagsdc"), ("world", "matchers"), ("coco-boxes", "matchers"), ("coco-boxes", "join"),
           ("coco-boxes", "full"), ("coco-boxes", "late"), ("coco-boxes", "parts"), ("coco-boxes", "full-late")]  # fmt: skip


@pytest.mark.parametrize(("corpus", "which"), RECIPES)
def test_stages_follow_one_another(corpus: str, which: str) -> None:
    before = {"join": {"pretrain", "vsrn", "baseline"}, "full": {"baseline"}, "late": {"pretrain"}, "parts": {"trunk"}}
    done = (before | {"full-late": {"baseline", "full-pretrain", "vsrn"}}).get(which, set())
    for stage in stages(corpus, which):
        settings = [*stage.overrides, *(["offline.candidates=somewhere"] if stage.candidates else [])]
        settings += ["distil.teachers=[somebody]"] if stage.teachers else []
        config = load_config(stage.recipe, settings)
        assert OBJECTIVES[config.objective].advice(config) == [], stage
        assert not stage.init or stage.init.split("/")[0] in done, stage
        assert not stage.candidates or stage.candidates in done, stage
        assert not stage.teachers or stage.teachers in done, stage
        assert not stage.evaluated or asked_of(stage, ["--query-bank", "--rescore"])[0] == "--query-bank"
        done.add(stage.name)


TRIOS = [("tagsdc", "baseline", "tags", "tagsdc"), ("full", "full-baseline", "full-tags", "full-tagsdc"),
         ("full", "full-offline", "full-tags-offline", "full-tagsdc-offline")]  # fmt: skip


@pytest.mark.parametrize(("which", "baseline", "tags", "tagsdc"), TRIOS)
def test_tagsdc_has_the_baselines_steps(which: str, baseline: str, tags: str, tagsdc: str) -> None:
    by_name: dict[str, Stage] = {stage.name: stage for stage in stages("coco-boxes", which)}
    steps = {name: load_config(stage.recipe).optimiser.steps for name, stage in by_name.items()}
    export = load_config(by_name[tags].recipe).log.export_at
    assert steps[baseline] == steps[tags] == export[0] + steps[tagsdc]
    assert by_name[baseline].overrides == by_name[tags].overrides == by_name[tagsdc].overrides
    assert by_name[tagsdc].init == f"{tags}/export-stage2"


@pytest.mark.parametrize(("which", "cost"), [("late", 2), ("full-late", 1.5)])  # of a step that writes, in steps that do not
def test_all_ends_follow_one_trunk_and_take_as_long(which: str, cost: float) -> None:
    trunk, *ends = stages("coco-boxes", which)
    assert {end.init for end in ends} == {f"{trunk.name}/export"}
    taken = ["offline.candidates=somewhere", "distil.teachers=[somebody]"] if trunk.teachers else []
    constant, plain, *written = (load_config(stage.recipe, [*stage.overrides, *taken]).optimiser for stage in (trunk, *ends))
    assert all(end == written[0] for end in written) and plain.steps == cost * written[0].steps
    assert plain.lr == written[0].lr == constant.lr
    assert {learning_rate(step, constant) for step in range(constant.warmup_steps, constant.steps)} == {constant.lr}
    assert max(learning_rate(end.steps - 1, end) for end in (plain, *written)) < 0.01 * constant.lr


def test_the_finished_runs_of_all_seeds_teach(tmp_path, monkeypatch) -> None:
    made = experiment.Experiment(tmp_path, 1, 29600, [4, 7])
    stage = next(stage for stage in stages("coco-boxes", "full") if stage.name == "full-tagsdc")
    for seed in (4, 7):
        (tmp_path / f"seed{seed}" / "full-tags" / "export-step2400").mkdir(parents=True)
    (tmp_path / "seed4" / "baseline" / "export").mkdir(parents=True)
    with pytest.raises(UserError, match=r"seed7.baseline is no finished run; train the teachers of all --seeds first"):
        made.train(stage, tmp_path / "data", tmp_path / "seed4", 4)
    (tmp_path / "seed7" / "baseline" / "export").mkdir(parents=True)
    launched: list[list[str]] = []
    monkeypatch.setattr(made, "launch", lambda script, arguments: launched.append(arguments))
    made.train(stage, tmp_path / "data", tmp_path / "seed4", 4)
    assert f"distil.teachers=[{tmp_path}/seed4/baseline,{tmp_path}/seed7/baseline]" in launched[0]
    assert f"init={tmp_path}/seed4/full-tags/export-step2400" in launched[0]


@pytest.mark.parametrize("which", ["full", "late", "parts", "full-late"])
def test_only_one_corpus_has_the_recipes(which, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["experiment", "world", "--output", str(tmp_path / "out"), "--set", which])
    with pytest.raises(UserError, match="recipes for coco-boxes alone"):
        experiment.run()
    assert not (tmp_path / "out").exists()


def test_the_intermediate_export_is_found(tmp_path) -> None:
    (tmp_path / "export-step400").mkdir()
    assert start_folder(tmp_path / "export-stage2") == tmp_path / "export-step400"
    assert start_folder(tmp_path / "export") == tmp_path / "export"


def test_summary_by_hand() -> None:
    rows = {"tags": {"1": {"recalls": {"rsum": 100.0}}, "2": {"recalls": {"rsum": 104.0}, "edits": {}}}}
    figure = summary(rows)["tags"]["rsum"]
    assert figure["seeds"] == [100.0, 104.0] and figure["mean"] == 102.0
    assert figure["std"] == pytest.approx(8**0.5)


def test_the_summary_names_what_stands_beside_the_words() -> None:
    blind = {"replace": {"model": 70.0, "blind": 60.0, "above": 10.0, "balanced": None, "both": 72.0, "pairs": 9}}
    hubs = {name: float(n) for n, name in enumerate(experiment.RECALLS)} | {"bank": 7}
    found = summary({"tags": {"1": {"recalls": {"rsum": 100.0}, "blind": blind, "query_bank": hubs}}})["tags"]
    values = {name: figure["mean"] for name, figure in found.items()}
    of_words = {"blind/replace": 60.0, "above blind/replace": 10.0, "both/replace": 72.0}
    of_hubs = {"without hubs/text_r1": 0.0, "without hubs/text_r5": 1.0, "without hubs/text_r10": 2.0, "without hubs/image_r1": 3.0,
               "without hubs/image_r5": 4.0, "without hubs/image_r10": 5.0, "without hubs/rsum": 6.0}  # fmt: skip
    assert values == {"rsum": 100.0} | of_words | of_hubs


def test_the_summary_names_what_the_encoder_would_write() -> None:
    own = {"model": 60.0, "likelihood": 70.0, "both": 75.0, "pairs": 9, "balanced": 55.0, "both_balanced": 60.0}
    table = summary({"tags": {"1": {"likelihood": {"swap": own}}}})["tags"]
    assert {name: row["mean"] for name, row in table.items()} == {
        "likelihood/swap": 70.0, "with the likelihood/swap": 75.0, "likelihood, balanced/swap": 55.0,
        "with the likelihood, balanced/swap": 60.0,
    }  # fmt: skip


def test_the_summary_names_every_way_of_ranking() -> None:
    recalls = {f"{side}_r{k}": float(k) for side in ("text", "image") for k in (1, 5, 10)} | {"rsum": 32.0}
    found = summary({"tags": {"1": {"query_bank": recalls, "rescored": recalls, "rescored_query_bank": recalls}}})["tags"]
    assert found["rescored/text_r5"]["mean"] == 5.0 and found["rescored without hubs/rsum"]["mean"] == 32.0
    assert found["without hubs/text_r1"]["mean"] == found["rescored without hubs/text_r1"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("recipe", "asked"),
    [("coco-boxes-tags", ["--likelihood", "--rescore"]), ("coco-boxes-baseline", ["--likelihood"]), ("coco-boxes-vsrn", [])],
)
def test_only_writers_are_asked_what_they_would_write(tmp_path, monkeypatch, recipe, asked) -> None:
    one = Experiment(tmp_path, 1, 29600)
    calls: list[list[str]] = []
    monkeypatch.setattr(one, "train", lambda stage, data, folder, seed: folder / stage.name)
    monkeypatch.setattr(one, "evaluate", lambda run, data, arguments: calls.append(arguments) or {})
    run_all(one, [Stage("one", recipe)], tmp_path, [1], ["--pairs", "edits", "--likelihood", "--rescore"])
    assert calls == [["--pairs", "edits", *asked]]


def test_the_page_is_opened_on_what_is_there(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    folder, data = tmp_path / "runs" / "seed1", tmp_path / "runs" / "data"

    def finish(name: str) -> None:
        (folder / name / "export").mkdir(parents=True)
        (folder / name / "export" / "model.safetensors").touch()

    assert page_command(folder, data) is None
    finish("baseline")
    (folder / "tagsdc" / "export").mkdir(parents=True)  # not finished
    assert page_command(folder, data) == "tagsds-serve --checkpoint runs/seed1/baseline --data runs/data"
    (folder / "tagsdc" / "export" / "model.safetensors").touch()
    finish("scan")
    finish("bfan-2-adaptive")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tagsds-serve").touch()
    command = "bin/tagsds-serve --checkpoint runs/seed1/tagsdc --data runs/data --matcher runs/seed1/scan"
    assert page_command(folder, data) == command
    assert page_command(folder, data, tmp_path / "my pictures") == f"{command} --pictures 'my pictures'"
    monkeypatch.chdir(tmp_path / "bin")
    assert str(folder / "tagsdc") in (page_command(folder, data) or "")


def test_pictures_reach_the_report(tmp_path, monkeypatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(experiment, "call", calls.append)
    figures = dict.fromkeys(("text_r1", "text_r5", "text_r10", "image_r1", "image_r5", "image_r10", "rsum"), 1.0)
    rows = {"tags": {"1": {"recalls": figures}}}
    made = experiment.Experiment(tmp_path, 1, 29600)
    experiment.finish(made, "coco-boxes", "tagsdc", tmp_path / "data", rows, [1], tmp_path / "pictures")
    experiment.finish(made, "coco-boxes", "tagsdc", tmp_path / "data", rows, [1], None)
    assert calls[0][calls[0].index("--pictures") + 1] == str(tmp_path / "pictures") and "--pictures" not in calls[1]


def test_a_folder_of_pictures_that_is_not_there_ends_it_at_once(tmp_path, monkeypatch) -> None:
    arguments = ["experiment", "demo", "--output", str(tmp_path / "out"), "--pictures", str(tmp_path / "none")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(UserError, match=r"--pictures .*none is no folder"):
        experiment.run()
    assert not (tmp_path / "out").exists()
