"""The wheel and the sdist: what is in them, and that the whole path works from them outside a checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.launch import TAGS_DC, TINY, free_port

ROOT = Path(__file__).parent.parent
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md",
         "requirements.lock")  # fmt: skip
FOLDERS = ("tagsds", "preprocess", "ds_configs", "slurm")
PLACE = {"ds_configs": "tagsds/ds_configs", "slurm": "tagsds/slurm"}
"""where an installed package has a folder of the checkout"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """The output of a command; an assertion with it where it fails. The checkout is not on the path of what it starts."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")} | environment
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the packages are built from, so that no build/ and egg-info are left in the checkout, nor taken from it."""
    folder = tmp_path_factory.mktemp("source") / "tagsds"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


def make_wheel(what: Path, out: Path) -> Path:
    """With the setuptools that is there: nothing is downloaded."""
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, what, cwd=out.parent)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(source, tmp_path_factory.mktemp("wheel") / "dist")


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", out, cwd=source)
    (made,) = out.glob("*.tar.gz")
    return made


def expected() -> set[str]:
    """Every file of the packages' folders, at the place where an installation has it."""
    found = set()
    for name in FOLDERS:
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and (name, path.name) != ("preprocess", "README.md"):
                found.add(f"{PLACE.get(name, name)}/{path.relative_to(ROOT / name).as_posix()}")
    return found


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (found,) = (member for member in archive.namelist() if member.endswith(f".dist-info/{name}"))
        return archive.read(found).decode()


def test_the_wheel_holds_every_file_and_no_other(wheel: Path) -> None:
    assert contents(wheel) == expected()
    some = {"tagsds/py.typed", "tagsds/ds_configs/zero2_bf16.json", "tagsds/slurm/lib.sh", "tagsds/recipes/tagsdc-base-coco.yaml",
            "tagsds/kernels/cpu/select.cpp", "tagsds/templates/report.html", "preprocess/sources/world.py"}  # fmt: skip
    assert some <= contents(wheel)


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    about = Parser().parsestr(metadata(wheel, "METADATA"))
    assert about["Name"] == "tagsds" and about["Requires-Python"] == ">=3.11"
    assert "Apache-2.0" in (about["License"] or about["License-Expression"]) and about["License-File"] == "LICENSE"
    assert metadata(wheel, "licenses/LICENSE").lstrip().startswith("Apache License\n")
    asked = [Requirement(text) for text in about.get_all("Requires-Dist") or []]
    required = {wanted.name: wanted for wanted in asked if "extra" not in str(wanted.marker)}
    assert str(required["torch"].specifier) == "==2.13.0"
    assert "0.19.8" in required["deepspeed"].specifier and "0.20.0" not in required["deepspeed"].specifier
    assert "5.23.0" in required["transformers"].specifier and "5.99" in required["transformers"].specifier
    assert "tagsds-project = tagsds.project:main" in metadata(wheel, "entry_points.txt")


def test_the_lock_file_names_one_version_of_each_requirement(wheel: Path) -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pinned = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(pinned), "names and versions only"
    versions = {found[1].lower().replace("_", "-"): found[2] for found in pinned if found}
    assert len(versions) == len(lines)
    about = Parser().parsestr(metadata(wheel, "METADATA"))
    asked = [Requirement(text) for text in about.get_all("Requires-Dist") or []]
    tested = [wanted for wanted in asked if wanted.marker is None or 'extra == "dev"' in str(wanted.marker)]
    assert len(tested) > 20
    for wanted in tested:
        assert versions[wanted.name.lower().replace("_", "-")] in wanted.specifier, wanted


def test_the_sdist_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(FILES) <= names
    again = make_wheel(sdist, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert contents(wheel) == contents(again)
        assert all(one.read(name) == other.read(name) for name in contents(wheel))


def fresh_environment(folder: Path, package: Path) -> Path:
    """A venv that holds the package and nothing else of its own; its bin folder.

    The requirements (1.3 GB) are not downloaded again: a .pth file lets the venv see the packages of the one that runs this test.
    Its own packages come first, and .pth files of a folder that is added so are not read: an editable installation of a checkout
    stays out.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (own / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "install", *options, "--ignore-installed", package, cwd=folder)
    return folder / "bin"


@pytest.mark.long
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_whole_path_from_an_installed_package(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Pack, look, train, evaluate, search, report, and the SLURM scripts' dry run, in an empty folder."""
    bin_of = fresh_environment(tmp_path / "venv", request.getfixturevalue(kind))
    here = tmp_path / "empty"
    here.mkdir()
    python = bin_of / "python"
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PATH": f"{bin_of}:{os.environ['PATH']}"}

    def call(*command: object) -> str:
        return run(*command, cwd=here, **environment)

    where = call(python, "-c", "import tagsds, preprocess; print(tagsds.__file__, preprocess.__file__)").split()
    assert all(Path(path).is_relative_to(tmp_path / "venv") for path in where)
    call(bin_of / "tagsds-pack", "world", "--out", "shards", "--train", 24, "--dev", 6, "--test", 8, "--workers", 1)
    common = ["--recipe", "world-tags", "--data", "shards", "--deepspeed_config", "zero1"]
    settings = [*TINY, *TAGS_DC[:2], "optimiser.steps=3", "negatives.shared=false", "validate.every=0", "log.export_at=[]"]
    call(python, "-m", "tagsds.preflight", *common, "--output", "run", "--cpu", *settings)
    launcher = [python, "-m", "deepspeed.launcher.runner", "--num_gpus", 1, "--master_port", free_port(), "--module"]
    call(*launcher, "tagsds.train", *common, "--output", "run", *settings)
    about = json.loads((here / "run" / "export" / "config.json").read_text())
    assert about["hidden_size"] == 32
    steps = [json.loads(line) for line in (here / "run" / "log.jsonl").read_text().splitlines()]
    assert max(row.get("step", 0) for row in steps) == 3
    call(bin_of / "tagsds-evaluate", "--checkpoint", "run", "--data", "shards", "--split", "test")
    recalls = json.loads((here / "run" / "results-test.json").read_text())["recalls"]
    assert 0 <= recalls["rsum"] <= 600
    search = "import tagsds; print(*(hit.key for hit in tagsds.load('run', 'shards').search('a red circle', 3)))"
    assert len(set(call(python, "-c", search).split())) == 3
    assert "--shortlist" in call(bin_of / "tagsds-serve", "--help")
    call(bin_of / "tagsds-report", "run", "--data", "shards", "--output", "report.html")
    assert "<html" in (here / "report.html").read_text()

    call(bin_of / "tagsds-project", "lab")
    slurm = {"DATA": str(here / "shards"), "RUNS": "runs", "GPUS_PER_NODE": "0", "CPUS_PER_TASK": "1", "RECIPE": "world-tags",
             "DS_CONFIG": "zero1", "ESTIMATE": "no"}  # fmt: skip
    printed = run("bash", "slurm/pretrain.sh", "--dry-run", *settings, cwd=here / "lab", **environment, **slurm)
    assert "sbatch --parsable" in printed and "-m tagsds.train --deepspeed_config zero1" in printed
    said = subprocess.run(
        [str(python), "-m", "tagsds.experiment", "demo", "--output", "demo"], cwd=here, capture_output=True, text=True,
        env=os.environ | environment | {"PYTHONPATH": ""},
    )  # fmt: skip
    assert said.returncode == 2 and "run from a checkout of the project" in said.stderr and said.stderr.count("\n") == 1
