"""Rules of the house that a reader relies on."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 350  # lines of a file


def sources() -> list[Path]:
    return sorted([*(ROOT / "tagsds").rglob("*.py"), *(ROOT / "preprocess").rglob("*.py")])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_of(path: Path) -> set[str]:
    """Modules a file imports anywhere, also inside functions and behind `importlib.import_module("...")`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
    return found


def uses(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(package + ".") for name in imports_of(path))


def test_only_the_engine_imports_deepspeed():
    engine = ROOT / "tagsds" / "engine"
    importers = {name_of(path) for path in sources() if uses(path, "deepspeed")}
    assert importers, "the engine must be among the files looked at"
    assert {name for name in importers if engine not in (ROOT / name).parents} == set()


@pytest.mark.parametrize("folder", ["models", "losses", "negatives"])
def test_single_device_code_knows_nothing_of_ranks(folder):
    files = sorted((ROOT / "tagsds" / folder).rglob("*.py"))
    assert len(files) > 2
    for path in files:
        assert not uses(path, "torch.distributed"), name_of(path)
        assert not uses(path, "tagsds.engine"), name_of(path)
        # nor by attribute, after `import torch`
        attributes = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert "distributed" not in attributes, name_of(path)


def test_nothing_is_measured_on_a_clock_that_can_be_set():
    """Dates for people come from it, and the age of a file; limits, waits and speeds do not."""
    wall = ("time.time(", "datetime.now(", "datetime.utcnow(")
    users = {name_of(path) for path in sources() if any(word in path.read_text() for word in wall)}
    assert users == {"tagsds/report.py", "tagsds/provenance.py", "tagsds/engine/build.py"}


def test_files_stay_short():
    long = {name_of(path): n for path in sources() if (n := len(path.read_text().splitlines())) > LONGEST}
    assert long == {}


def test_a_loss_fits_on_a_page_or_two():
    for path in (ROOT / "tagsds" / "losses").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, name_of(path)


PLACES = re.compile(r"(?<![\w.$}/-])/(?:home|work|root|tmp)/[\w.-]")


def test_no_path_of_a_machine_in_tracked_files():
    """Paths come from the command line, the recipe or the environment."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if not name or not path.is_file() or path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name}:{n}: {line.strip()}" for n, line in enumerate(text.splitlines(), 1) if PLACES.search(line)]
    assert found == []


def test_the_pattern_finds_what_it_should():
    assert PLACES.search('path = "/home/me/x"') and PLACES.search("--data /tmp/shards") and PLACES.search("(/work/a)")
    assert not PLACES.search("https://example.org/home/x") and not PLACES.search("runs/tmp/x")
    assert not PLACES.search('"$HOME/data/x"') and not PLACES.search("../shared/data/x")


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it is compiled by Triton: `@triton.jit` or `@triton.jit(...)`."""
    return any(ast.unparse(decorator).startswith("triton.jit") for decorator in node.decorator_list)


def test_no_function_takes_more_than_eight_parameters():
    """More than that belong together: they are an object. (A Hugging Face config is one, and its fields are parameters; a Triton
    kernel takes pointers and numbers, no objects.)"""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if count > 8 and not is_kernel(node) and not (node.name == "__init__" and path.name == "config.py"):
                    found.append(f"{name_of(path)}: {node.name} takes {count}")
    assert found == []
