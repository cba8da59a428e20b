"""A source from outside the package: packed and verified by tagsds-pack, read back by the data loader."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from preprocess import pack
from preprocess.arguments import positive_number
from preprocess.records import Caption, ImageRecord
from preprocess.sources import SOURCES
from preprocess.sources.command import SourceCommand
from tagsds.data.shards import load_bank
from tagsds.errors import UserError


@dataclass
class LinesSource:
    """A text file, `key<TAB>caption` a line; region r of an image is the r-th unit vector."""

    captions: dict[str, str]
    regions: int
    files: list[Path]
    name: str = "lines"
    feature_dim: int = 8
    class_names: list[str] = field(default_factory=list)
    num_classes: int = 0
    background_class: bool = False
    has_boxes: bool = False
    imported_ids: bool = False

    @property
    def facts(self) -> dict:
        return {"captions": len(self.captions)}

    def splits(self) -> dict[str, list[str]]:
        return {"train": list(self.captions)}

    def texts(self, split: str) -> Iterable[str]:
        return self.captions.values()

    def record(self, split: str, key: str) -> ImageRecord:
        features = np.eye(self.regions, self.feature_dim, dtype=np.float16)
        return ImageRecord(key, features, None, [Caption(f"{key}-0", self.captions[key])])

    def edits(self, split: str) -> dict:
        return {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", type=Path, required=True, help="text file, key<TAB>caption a line")
    parser.add_argument("--regions", type=positive_number, default=2, help="of an image (default 2)")


def make(args: argparse.Namespace) -> LinesSource:
    if not args.lines.is_file():
        raise UserError(f"{args.lines} does not exist; check --lines.")
    pairs = (line.split("\t") for line in args.lines.read_text().splitlines())
    return LinesSource(dict(pairs), args.regions, [args.lines])  # type: ignore[arg-type]


COMMAND = SourceCommand("lines of text, with made-up regions", add_arguments, make, paths=frozenset({"lines"}))


@pytest.fixture
def lines(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(SOURCES, "lines", COMMAND)
    path = tmp_path / "captions.txt"
    path.write_text("a\ttwo dogs run\nb\ta red bus\nc\ta man on a bike\n")
    return path


def test_packed_verified_and_read(lines, tmp_path, capsys):
    out = tmp_path / "shards"
    pack.run(["lines", "--lines", str(lines), "--regions", "3", "--out", str(out), "--spans", "rules", "--workers", "1"])
    made = json.loads((out / "manifest.json").read_text())["made_by"]
    own = {key: made["arguments"][key] for key in ("source", "regions", "captions")}
    assert own == {"source": "lines", "regions": 3, "captions": 3}
    assert str(lines) not in json.dumps(made)  # the checksum stands for the file
    pack.run(["verify", str(out)])
    bank, manifest = load_bank(out, "train")
    assert (manifest.feature_dim, bank.num_images, bank.num_captions) == (8, 3, 3)
    assert bank.regions.lengths.tolist() == [3, 3, 3]
    first = bank.regions.values[:3].float()
    assert first.tolist() == np.eye(3, 8).tolist()


def test_its_help_and_its_errors(lines, tmp_path, capsys):
    with pytest.raises(SystemExit):
        pack.parse(["--help"])
    assert "lines of text, with made-up regions" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        pack.parse(["lines", "--lines", "x", "--out", "y", "--regions", "0"])
    assert "must be at least 1" in capsys.readouterr().err
    with pytest.raises(UserError, match="check --lines"):
        pack.run(["lines", "--lines", str(tmp_path / "none"), "--out", str(tmp_path / "o")])
