"""DeepSpeed files by name, and the folder that tagsds-project writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagsds import experiment, shipped
from tagsds.engine.ds_config import ds_config_path
from tagsds.errors import UserError
from tagsds.project import make_project

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["zero2_bf16", "zero2_bf16.json", "ds_configs/zero2_bf16.json", "ds_configs/zero2_bf16"])
def test_a_deepspeed_file_is_found_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ds_config_path(name) == ROOT / "ds_configs" / "zero2_bf16.json"


def test_a_file_that_is_there_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "ds_configs" / "zero2_bf16.json"
    own.parent.mkdir()
    own.write_text("{}")
    assert ds_config_path("ds_configs/zero2_bf16.json").resolve() == own
    assert ds_config_path("zero2_bf16") == ROOT / "ds_configs" / "zero2_bf16.json"


@pytest.mark.parametrize("name", ["zero9", "else/zero2_bf16.json", "ds_configs/x/zero2.json", "", "README.md", "/zero2.json"])
def test_any_other_name_is_refused_with_those_that_are_known(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"does not exist; .* names: fp16, zero0, zero1, zero2, zero2_bf16, zero3_bf16"):
        ds_config_path(name)


def test_a_project_folder_has_all_that_the_jobs_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "lab"
    copied = make_project(folder)
    originals = [path for name in ("slurm", "ds_configs") for path in (ROOT / name).iterdir() if path.is_file()]
    assert sorted(path.relative_to(ROOT) for path in originals) == sorted(path.relative_to(folder) for path in copied)
    for path in originals:
        assert (folder / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    assert os.access(folder / "slurm" / "pretrain.sh", os.X_OK) and not os.access(folder / "slurm" / "env.sh", os.X_OK)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ds_configs").mkdir()
    with pytest.raises(UserError, match="ds_configs exists and may hold your changes"):
        make_project(tmp_path)
    assert not (tmp_path / "slurm").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "tagsds.project", str(tmp_path / "file" / "x")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_experiments_say_that_they_need_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped.checkout() == ROOT
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "tagsds")
    assert shipped.checkout() is None
    monkeypatch.setattr(sys, "argv", ["experiment", "demo", "--output", str(tmp_path / "runs")])
    with pytest.raises(UserError, match="run from a checkout of the project"):
        experiment.run()
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="missing from this installation"):
        shipped.shipped("slurm")
