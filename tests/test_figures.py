"""The pictures of docs/: they are what the code draws, and what they show is what the losses compute."""

from __future__ import annotations

import base64
import io
import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from tagsds.errors import UserError
from tagsds.figures import canvas, quintuplet, ranks
from tagsds.figures.__main__ import PICTURES, draw_all
from tagsds.figures.example import Example
from tagsds.losses.quintuplet import hardest_in_batch

PLACE = Path(__file__).parent.parent / "docs" / "pictures"
PAGE = PLACE.parent / "how_it_works.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
MOST_BYTES = 1_200_000  # of all pictures and the notebook
MADE_BY_FIGURES = {f"{picture.name}.svg" for picture in PICTURES}


@pytest.fixture(scope="module")
def example() -> Example:
    return Example.load(PLACE / "example.json")


@pytest.fixture(scope="module")
def drawn(example: Example, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    return {path.name: path.read_text() for path in draw_all(folder, example)}


def parts(svg: str) -> tuple[list[str], np.ndarray, list[np.ndarray]]:
    """What is between the numbers, without names that are made by hashing; the numbers; the pixels of pictures inside."""
    inside = re.compile(r"data:image/png;base64,([^\"]+)")
    pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(found)))) for found in inside.findall(svg)]
    svg = inside.sub("", svg)
    svg = re.sub(r"\b[a-z]+[0-9a-f]{10}\b", "", svg)
    return NUMBER.split(svg), np.array([float(number) for number in NUMBER.findall(svg)]), pixels


@pytest.mark.parametrize("name", sorted(MADE_BY_FIGURES))
def test_the_committed_picture_is_what_the_code_draws(name: str, drawn: dict[str, str]) -> None:
    """To a twentieth of a point: another processor may round the last digit in another way."""
    texts, numbers, pixels = parts((PLACE / name).read_text())
    new_texts, new_numbers, new_pixels = parts(drawn[name])
    said = "draw it anew: python -m tagsds.figures docs/pictures"
    assert texts == new_texts, said
    assert np.abs(numbers - new_numbers).max() <= 0.05, said
    assert len(pixels) == len(new_pixels) and all((a == b).all() for a, b in zip(pixels, new_pixels, strict=True)), said


def test_drawing_twice_gives_the_same_bytes(example: Example, drawn: dict[str, str]) -> None:
    assert canvas.svg_of(PICTURES[0], example) == drawn["loop.svg"]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_can_be_read(picture: canvas.Picture, drawn: dict[str, str]) -> None:
    """It has an alternative text, on the page as well; at a width of 400 pixels no text is below 9 pixels."""
    svg = drawn[f"{picture.name}.svg"]
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img" and root[0].text == picture.alt and len(picture.alt) > 100
    assert root.attrib["width"] == f"{canvas.WIDTH:g}pt"
    assert f"![{picture.alt}](pictures/{picture.name}.svg)" in PAGE.read_text()
    scales = [float(scale) for scale in re.findall(r"scale\((0\.\d+) -", svg)]  # of text: size / 100
    assert scales and min(scales) >= 0.09 and 'href="http' not in svg


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2: 0 black, 1 white."""
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def as_seen(colour: str, matrix: np.ndarray) -> np.ndarray:
    """Linear RGB of a colour as a dichromat sees it."""
    values = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return matrix @ np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# Viénot, Brettel and Mollon 1999: protanopia and deuteranopia in linear RGB
DICHROMATS = {
    "protan": np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]),
    "deutan": np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]),
}


def test_colours_are_dark_enough_and_told_apart() -> None:
    inks = (canvas.INK, canvas.GREY, canvas.BLUE, canvas.ORANGE, canvas.GREEN, canvas.PURPLE)
    for colour in inks:
        assert contrast(colour, "#ffffff") >= 4.5
        assert contrast(colour, canvas.PALE[colour]) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for matrix in DICHROMATS.values():  # lines and bars that stand for different things
        for a, b in combinations((canvas.BLUE, canvas.ORANGE, canvas.GREEN), 2):
            assert np.abs(as_seen(a, matrix) - as_seen(b, matrix)).max() > 0.05, (a, b)


def test_the_terms_of_the_quintuplet_by_hand() -> None:
    """m_on 0.2, m_off 0, alpha 0.3, beta 1.5; the similarities stand in the module."""
    assert quintuplet.weight(0.70 - 0.55) == pytest.approx(1.5 - 0.15 / 0.3, abs=1e-5)
    assert quintuplet.weight(0.44 - 0.50, "image") == pytest.approx(1.5 + 0.06 / 0.3, abs=1e-5)
    expected = {"online_caption": 1.0 * 0.15, "online_image": 1.7 * 0.10, "offline_caption": 0.10, "offline_image": 0.0,
                "offline_both": 0.04, "offline_others": 0.0}  # fmt: skip
    assert quintuplet.terms("adaptive") == pytest.approx(expected, abs=1e-6)
    sums = {kind: sum(quintuplet.terms(kind).values()) for kind in ("online", "offline", "quintuplet", "adaptive")}
    assert sums == pytest.approx({"online": 0.25, "offline": 0.35, "quintuplet": 0.39, "adaptive": 0.46}, abs=1e-6)


def test_ranks_of_the_hardest_are_those_of_a_simulation() -> None:
    """The rank of the hardest negative that `hardest_in_batch` finds, in a corpus of 2,000 captions, over 4,000 batches of 16."""
    generator = torch.Generator().manual_seed(0)
    corpus, batch = 2000, 16
    found = []
    for _ in range(250):
        drawn = torch.stack(
            [torch.randperm(corpus, generator=generator)[:batch] for _ in range(batch)]
        )  # rank of each cell in its row
        hardest, _, _ = hardest_in_batch(-drawn.double(), torch.arange(batch), torch.arange(batch))
        found.append(-hardest)
    share = (torch.cat(found)[:, None] < torch.tensor([20, 90, 300])).double().mean(dim=0)  # ranks from 0
    expected = ranks.share_of_hardest(batch - 1, np.array([20.0, 90.0, 300.0]), corpus)
    assert share.numpy() == pytest.approx(expected, abs=0.03)
    for half, sample in ((983, 399), (3083, 127)):  # of the alternative text
        assert ranks.share_of_hardest(sample, np.array([float(half)]))[0] == pytest.approx(0.5, abs=5e-4)


def test_a_record_that_lacks_something_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "example.json").write_text('{"picture": ""}')
    with pytest.raises(UserError, match=r"example\.json is no record of an example .*record it again"):
        Example.load(tmp_path / "example.json")


def test_pictures_and_notebook_stay_small() -> None:
    files = [*PLACE.iterdir(), *PLACE.parent.glob("notebook*")]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
