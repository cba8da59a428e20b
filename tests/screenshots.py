"""Pictures of the docs, taken of the real pages: the report of a run, TensorBoard on its event files, and the page of tagsds-serve.

    python -m tests.screenshots docs/pictures --run runs/demo

The run is an experiment's folder (`make demo`). Needs chromium and chromedriver. A picture is a PNG of at most 150 KB, and shows no
path of the machine: the report's table of runs is left out, and the servers run within the folder.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from PIL import Image

from tagsds.errors import UserError, command
from tagsds.report import write_report
from tests.browser import browser

STAGES = ("pretrain", "baseline", "tags", "tagsdc")  # of an experiment's first seed
MOST_BYTES = 150_000  # of a picture
WIDTH = 1100  # CSS pixels
PATIENCE = 90  # seconds for a server to start, and to draw
WRONG = "a picture of a large white heart, a green square and a small green circle"  # of the first test image; it is a cross


def shrink(picture: bytes, most: int = MOST_BYTES) -> bytes:
    """The PNG with a palette: as many colours, 256 at most, as `most` bytes leave room for."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        stream = io.BytesIO()
        image.quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= most:
            return stream.getvalue()
    raise UserError(f"a picture of {image.width} x {image.height} pixels does not fit into {most} bytes; show less of the page.")


def capture(driver: Any, top: float, bottom: float, width: int = WIDTH) -> bytes:
    """PNG of the page between two heights in CSS pixels."""
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(taken["data"])


def edges(driver: Any, script: str) -> tuple[float, float]:
    """Top and bottom on the page of what `script` names, in CSS pixels."""
    box = driver.execute_script(f"const box = {script}.getBoundingClientRect(); return [box.top + scrollY, box.bottom + scrollY]")
    return box[0], box[1]


def shoot_report(runs: list[Path], output: Path) -> None:
    """report.png: recall and edited captions; report-rankings.png: the first rankings; report-negatives.png: written negatives of
    the last run that has some."""
    with tempfile.TemporaryDirectory() as folder, browser(WIDTH) as driver:
        page = Path(folder) / "report.html"
        write_report(runs, page)
        driver.get(page.as_uri())
        top, _ = edges(driver, "document.querySelector('#recall')")
        _, bottom = edges(driver, "document.querySelector('#edits')")
        save(capture(driver, top, bottom + 8), output / "report.png")
        for name in ("rankings", "negatives"):
            cards = f"document.querySelectorAll('#{name} .card')"
            count = driver.execute_script(f"return {cards}.length")
            if not count:
                print(f"no report-{name}.png: the runs have none")
                continue
            if name == "rankings":
                top, _ = edges(driver, "document.querySelector('#rankings')")
                first = 0
            else:  # the last run's cards stand behind the last heading
                first = driver.execute_script(
                    f"const last = [...document.querySelectorAll('#negatives h3')].at(-1); return [...{cards}]"
                    ".findIndex(c => last.compareDocumentPosition(c) & Node.DOCUMENT_POSITION_FOLLOWING)"
                )
                top, _ = edges(driver, "[...document.querySelectorAll('#negatives h3')].at(-1)")
            _, bottom = edges(driver, f"{cards}[{min(first + (2 if name == 'rankings' else 1), count - 1)}]")
            save(capture(driver, top, bottom + 8), output / f"report-{name}.png")


@contextmanager
def server(folder: Path, path: str, module: str, *arguments: str) -> Iterator[str]:
    """The address of a program on a free port of loopback that serves the folder, once `path` answers; ended on leaving."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [sys.executable, "-m", module, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    program = subprocess.Popen(call, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(lambda: answers(address + path), f"{module} at {address}")
        yield address
    finally:
        program.terminate()
        program.wait(20)


def answers(address: str) -> bool:
    """Whether the server is up, and TensorBoard has found a run."""
    try:
        with urlopen(address, timeout=5) as response:
            return len(response.read()) > 4  # []
    except (URLError, OSError):
        return False


def wait_for(condition: Any, what: str) -> None:
    """UserError where the condition does not become true in PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise UserError(f"{what} did not answer within {PATIENCE} seconds; try again, or look at it by hand.")
        time.sleep(0.5)


def shoot_tensorboard(folder: Path, output: Path, tags: str = "loss/(total|t2i|i2t|syn|disc)|rsum") -> None:
    """tensorboard.png: the curves of the tags that the regular expression matches."""
    logs = ("--logdir", ".", "--load_fast", "false", "--reload_interval", "5")
    with server(folder, "data/runs", "tensorboard.main", *logs) as address, browser(1280, 1030) as driver:
        driver.get(f"{address}?tagFilter={quote(tags)}&smoothing=0.6#timeseries")
        lines = "return document.querySelectorAll('line-chart').length"
        wait_for(lambda: driver.execute_script(lines) > 2, "the page of TensorBoard")
        driver.execute_script("document.querySelector('.settings-button')?.click()")  # the panel takes a third of the page
        time.sleep(8)  # the curves are drawn one by one, after what has no name to wait for
        save(capture(driver, 0, 1030, 1280), output / "tensorboard.png")


def shoot_page(folder: Path, output: Path) -> None:
    """page.png: a caption of the first test image with its last word changed, proofread in the page of `tagsds-serve`."""
    shards = ("--checkpoint", "seed1/tagsdc", "--data", "data", "--no-browser")
    with server(folder, "api/images?count=1", "tagsds.serve.command", *shards) as address, browser(WIDTH, 760) as driver:
        with urlopen(f"{address}api/images?count=1", timeout=20) as response:
            image = json.load(response)["images"][0]["key"]
        driver.get(f"{address}#/proofread?image={quote(image)}&sentence={quote(WRONG)}")
        wait_for(lambda: "Word by word" in driver.page_source, "the page of tagsds-serve")
        time.sleep(1)
        save(capture(driver, 0, 760), output / "page.png")


def save(picture: bytes, path: Path) -> None:
    path.write_bytes(shrink(picture))
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def run() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("output", type=Path)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of an experiment (default runs/demo)")
    options = parser.parse_args()
    seeds = sorted(options.run.glob("seed*"))
    runs = [seeds[0] / stage for stage in STAGES if (seeds[0] / stage).is_dir()] if seeds else []
    if not runs:
        raise UserError(f"{options.run} holds no seed*/ with the runs {', '.join(STAGES)}; make it with `make demo`.")
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        shoot_report(runs, options.output)
        shoot_tensorboard(seeds[0], options.output)
        shoot_page(options.run.resolve(), options.output)
    except pytest.skip.Exception as missing:
        raise UserError(f"{missing}; install them for pictures.") from missing


main = command(run)

if __name__ == "__main__":
    main()
