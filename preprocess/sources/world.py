"""Source `world`: scenes drawn by preprocess/world.py. Reads no files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocess import world
from preprocess.arguments import whole_number
from preprocess.records import Caption, ImageRecord
from preprocess.sources.command import SourceCommand
from preprocess.world_captions import write_captions, write_edits
from preprocess.world_grammar import EDIT_KINDS


@dataclass
class WorldSource:
    """`images` of each split, drawn from `seed`."""

    images: dict[str, int]
    seed: int = 0
    name: str = "world"
    feature_dim: int = world.FEATURE_DIM
    class_names: list[str] = field(default_factory=lambda: list(world.CLASS_NAMES))
    num_classes: int = len(world.CLASS_NAMES)
    background_class: bool = False
    files: list[Path] = field(default_factory=list)
    has_boxes: bool = True
    imported_ids: bool = False
    facts: dict = field(default_factory=dict)

    def splits(self) -> dict[str, list[str]]:
        """Keys are the split and a running number."""
        return {split: [f"{split}-{index:06d}" for index in range(count)] for split, count in self.images.items()}

    def scene(self, key: str) -> tuple:
        """The things in an image and the sentences about it."""
        split, index = key.rsplit("-", 1)
        scene = world.make_scene(world.generator(self.seed, split, int(index), "scene"))
        return scene, write_captions(scene, world.generator(self.seed, split, int(index), "captions"))

    def texts(self, split: str) -> Iterable[str]:
        """Captions of a split, without drawing."""
        for key in self.splits()[split]:
            yield from (sentence.text for sentence in self.scene(key)[1])

    def record(self, split: str, key: str) -> ImageRecord:
        """Draw one scene; n things, features [n, 192]."""
        scene, sentences = self.scene(key)
        rng = world.generator(self.seed, split, int(key.rsplit("-", 1)[1]), "picture")
        picture, boxes = world.draw(scene, rng)
        classes = np.zeros((len(scene), self.num_classes), dtype=np.float32)
        for row, thing in enumerate(scene):
            classes[row, self.class_names.index(f"{thing.colour} {thing.kind}")] = 1.0
        captions = [Caption(f"{key}-{n}", s.text, s.spans()) for n, s in enumerate(sentences)]
        return ImageRecord(
            key=key,
            regions=world.features(picture, boxes),
            boxes=(boxes / world.CANVAS).astype(np.float32),
            captions=captions,
            classes=classes,
            picture=world.png(picture),
            picture_type="png",
            origin="world",
        )

    def edits(self, split: str) -> dict[str, list[dict[str, str]]]:
        """False captions of dev and test, one word away from the true one; none for training."""
        if split == "train":
            return {}
        found: dict[str, list[dict[str, str]]] = {kind: [] for kind in EDIT_KINDS}
        for index, key in enumerate(self.splits()[split]):
            rng = world.generator(self.seed, split, index, "edits")
            scene, sentences = self.scene(key)
            for sentence in sentences:
                for kind, edited in write_edits(sentence, scene, rng).items():
                    row = {"filename": f"{key}.png", "caption": sentence.text, "negative_caption": edited.text}
                    found[kind].append(row)
        return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", type=whole_number, default=2000, help="images (default 2000)")
    parser.add_argument("--dev", type=whole_number, default=200, help="images (default 200)")
    parser.add_argument("--test", type=whole_number, default=400, help="images (default 400)")
    parser.add_argument("--seed", type=int, default=0, help="(default 0)")


def make(args: argparse.Namespace) -> WorldSource:
    images = {split: getattr(args, split) for split in ("train", "dev", "test")}
    return WorldSource({split: count for split, count in images.items() if count}, args.seed)


COMMAND = SourceCommand("the embedded corpus: drawn scenes with captions and false edits", add_arguments, make)
