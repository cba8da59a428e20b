"""docs/notebook.ipynb runs from its first cell to its last, and docs/notebook.md is what it shows."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.launch import free_port
from tests.programs import script

nbformat = pytest.importorskip("nbformat")

DOCS = Path(__file__).parent.parent / "docs"
SMALL = "images, pictures, pretraining, finetuning, ranked = 60, 24, 6, 3, 12"
MOST_BYTES = 400_000  # of the notebook and of the pictures of its page
HIT = re.compile(r"^(\d\.\d\d)  (test-\d{6})  \S", re.MULTILINE)

tool = script("docs/notebook_page.py")


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(tool.NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def small_run(notebook: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook with a small corpus and a few steps."""
    if missing := [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'tagsds[dev]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MASTER_PORT", str(free_port()))
        patch.setenv("PYTHONPATH", str(DOCS.parent))
        return tool.execute(notebook, tmp_path_factory.mktemp("notebook"), SMALL, timeout=300)


def printed(notebook: Any, word: str) -> str:
    """What the code cell that holds this word printed."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and word in cell.source]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(notebook: Any) -> list[tuple[str, bytes]]:
    """Alternative texts and PNG files of all outputs."""
    text_and_file = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                text_and_file.append((output.metadata["image/png"]["alt"], tool.base64.b64decode(output.data["image/png"])))
    return text_and_file


def recalls(notebook: Any) -> list[float]:
    """R@1, R@5, R@10 of text and of image retrieval and their sum, %."""
    (row,) = [line for line in printed(notebook, "tagsds-evaluate").splitlines() if re.match(r"test, \d+ images", line)]
    return [float(number) for number in row.partition("images")[2].split()[:7]]


def check_results(notebook: Any) -> None:
    """What every run shows, however short: recalls, hits in order, negatives that are no captions, a row for each word."""
    *each, rsum = recalls(notebook)
    assert all(0 <= value <= 100 for value in each) and rsum == pytest.approx(sum(each), abs=0.4)
    hits = HIT.findall(printed(notebook, "encoder.search(sentence, 5)"))
    scores = [float(score) for score, _ in hits]
    assert len({key for _, key in hits}) == 5 and scores == sorted(scores, reverse=True)
    captions = printed(notebook, "encoder.search(key, 5)").splitlines()
    assert len(captions) == 5 and all(re.match(r"\d\.\d\d [ *] \S", line) for line in captions)
    first, *negatives, dropped = printed(notebook, "write_negatives").splitlines()
    true = first.removesuffix("  (true)")[6:]
    assert first.endswith("  (true)") and negatives and "dropped" in dropped
    for line in negatives:
        assert re.fullmatch(r"\d\.\d\d  .+  \(.+ -> .+\)", line) and line[6:].partition("  (")[0] != true
    word = re.compile(r"(\S+) +(\d\.\d\d) *(#*) *(-> \S.* \(\d\.\d\d\))?$")
    rows = [word.match(line) for line in printed(notebook, "proofread").splitlines()]
    assert len(rows) == len(true.replace(",", " ,").split()) and all(rows)
    for alt, file in pictures(notebook):
        picture = Image.open(io.BytesIO(file))
        assert alt and picture.mode == "P" and picture.height == 104 and len(picture.getcolors() or []) > 3
    assert len(pictures(notebook)) == 3


@pytest.mark.slow
def test_the_notebook_runs(small_run: Any) -> None:
    check_results(small_run)
    assert "packed into shards" in printed(small_run, "tagsds-pack world")
    assert "done after 6 steps" in printed(small_run, "world-pretrain")
    assert "done after 3 steps" in printed(small_run, "world-tagsdc")


def test_the_outputs_are_those_of_a_full_run(notebook: Any) -> None:
    """Searches that visibly work: the picture's own captions are found, and the word that was changed is the most suspicious."""
    check_results(notebook)
    (parameters,) = [cell.source for cell in notebook.cells if tool.PARAMETERS in cell.metadata.get("tags", [])]
    steps = re.findall(r"(?:pretraining|finetuning) = (\d+)", parameters)
    for word, count in zip(("world-pretrain", "world-tagsdc"), steps, strict=True):
        assert f"done after {count} steps" in printed(notebook, word)
    text_r1, _, _, image_r1, *_ = recalls(notebook)
    assert text_r1 > 50 and image_r1 > 50  # of 100 pictures; by chance 1
    assert " * " in printed(notebook, "encoder.search(key, 5)")
    text = nbformat.writes(notebook)
    assert not re.search(r"/(?:home|root|tmp|usr|work)/", text) and '"execution"' not in text


def test_the_page_is_what_the_notebook_shows(notebook: Any) -> None:
    said = "write it anew: python docs/notebook_page.py"
    text, files = tool.page(notebook)
    assert tool.PAGE.read_text() == text, said
    assert {path.name: path.read_bytes() for path in tool.PICTURES.glob("notebook-*.png")} == files, said
    assert tool.NOTEBOOK.stat().st_size + sum(map(len, files.values())) < MOST_BYTES


def test_a_cell_that_fails_ends_the_run(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        tool.execute(broken, tmp_path, timeout=60)


def test_what_is_kept_of_a_run() -> None:
    cell = nbformat.v4.new_code_cell("!x")
    cell.metadata["execution"] = {"iopub.execute_input": "2020-01-01"}
    noise = "[2026-01-01 00:00:00,000] [WARNING] [somewhere.py:1] no GPU\n"
    ends = "\rrun: 100%|####| 2/2" * 2
    bars = f"\rload:  50%|##  | 1/2\r          \r\rrun:   0%|    | 0/2\rsaid\nrun:  50%|##  | 1/2{ends}\n"
    streams = {"stderr": f"{noise}a\r\n{bars}", "stdout": "b\n"}
    cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in streams.items()]
    kept = tool.clean(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), cell]))
    assert [(output.name, output.text) for output in kept.cells[1].outputs] == [("stdout", "a\nsaid\nrun: 100%|####| 2/2\nb\n")]
    assert tool.page(kept)[0] == f"# Title\n\n{tool.HEAD}\n\n```python\n!x\n```\n\n```text\na\nsaid\nrun: 100%|####| 2/2\nb\n```\n"
