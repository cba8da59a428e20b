"""docs/notebook.ipynb: run it, and write docs/notebook.md from it with the pictures of its outputs.

    python docs/notebook_page.py --run     run it from the beginning in a new folder, keep its outputs, write the page (minutes)
    python docs/notebook_page.py           write the page from the outputs that are there
"""

from __future__ import annotations

import argparse
import base64
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat

DOCS = Path(__file__).resolve().parent
NOTEBOOK, PAGE, PICTURES = DOCS / "notebook.ipynb", DOCS / "notebook.md", DOCS / "pictures"
PARAMETERS = "parameters"  # tag of the cell that other values can take the place of
HEAD = "*This page is [notebook.ipynb](notebook.ipynb) with its outputs; run it with Jupyter in the environment of `make install`.*"
BAR = re.compile(r"(.*?): +(\d+)%\|")  # of tqdm
NOISE = re.compile(r"^.*(?:\[(?:WARNING|INFO)\]|built successfully|^kernels: |TqdmWarning|autonotebook).*\n?", re.MULTILINE)


def execute(notebook: Any, folder: Path, parameters: str = "", timeout: int = 1800) -> Any:
    """Run all cells in a kernel whose directory is `folder`. Returns the notebook with its outputs. A cell that fails raises
    nbclient's CellExecutionError.

    parameters   Python that is run in the place of the cell with the tag PARAMETERS
    """
    from nbclient import NotebookClient

    notebook = nbformat.from_dict(notebook)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        if parameters and PARAMETERS in cell.metadata.get("tags", []):
            cell.source = parameters
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def clean(notebook: Any) -> Any:
    """What is kept of a run: no times of cells, no identities, no messages about the machine; streams joined."""
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        outputs: list[Any] = []
        for output in cell.outputs:
            if output.output_type != "stream":
                outputs.append(output)
            elif outputs and outputs[-1].output_type == "stream":  # a progress bar comes in many pieces
                outputs[-1].text += output.text
            else:
                outputs.append(nbformat.v4.new_output("stream", name="stdout", text=output.text))  # type: ignore[no-untyped-call]
        for output in outputs:
            if output.output_type == "stream":
                output.text = NOISE.sub("", without_bars(output.text))
        outputs = [output for output in outputs if output.get("text", "-")]
        cell.outputs = outputs
    notebook.metadata = nbformat.from_dict(  # type: ignore[no-untyped-call]
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    )
    return notebook


def without_bars(text: str) -> str:
    """What a progress bar has drawn over is left out: of each bar the line of its end stays, and no empty line."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    bar = [BAR.match(line) for line in lines]
    whole = {found[1]: place for place, found in enumerate(bar) if found and found[2] == "100"}  # the last such line
    kept = [line for place, line in enumerate(lines) if not bar[place] or place in whole.values()]
    return "".join(f"{line}\n" for line in kept)


def page(notebook: Any) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and the pictures it shows by their names in docs/pictures."""
    parts, pictures = [], {}
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if number == 1:
                parts.append(HEAD)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for place, output in enumerate(cell.outputs, 1):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"notebook-{number}-{place}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{output.metadata.get('image/png', {}).get('alt', '')}](pictures/{name})")
            else:
                text = output.text if output.output_type == "stream" else data["text/plain"]
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def write_page(notebook: Any) -> None:
    text, pictures = page(notebook)
    for old in PICTURES.glob("notebook-*.png"):
        old.unlink()
    for name, picture in pictures.items():
        (PICTURES / name).write_bytes(picture)
    PAGE.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run docs/notebook.ipynb and write docs/notebook.md from it.")
    parser.add_argument("--run", action="store_true", help="run the notebook first")
    args = parser.parse_args()
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    if args.run:
        with tempfile.TemporaryDirectory() as folder:
            notebook = clean(execute(notebook, Path(folder)))
        nbformat.write(notebook, NOTEBOOK)  # type: ignore[no-untyped-call]
    write_page(notebook)


if __name__ == "__main__":
    main()
