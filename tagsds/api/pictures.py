"""Pictures as input: their regions by the vision model that the corpus was extracted with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tagsds.errors import UserError
from tagsds.files import is_file
from tagsds.formats.manifest import Manifest
from tagsds.formats.shape import Count, Of, Table, problem
from tagsds.vision.checkpoint import Checkpoint, find_vision_checkpoint, on_this_disk
from tagsds.vision.model import Extraction, VisionModel
from tagsds.vision.pictures import SUFFIXES, BrokenError, decode, upright

ARGUMENTS = {
    "kind": Of(str), "model": Table({"bytes": Count(), "sha256": Of(str)}), "pool?": (Count(1), None), "threshold?": Of(float),
    "min_regions?": Count(1), "max_regions?": Count(1), "dtype?": Of(str),
}  # fmt: skip
INSTEAD = "give Regions(features, boxes) as its extractor gives them"


class PictureReader:
    """The regions of a picture, as tagsds-extract would pack them. The model is loaded with the first picture.

    manifest   of the corpus; None: there is none
    vision     folder of the vision model, or its name on the Hugging Face hub; None: the one that the manifest names, where it is
               on this disk
    raises     UserError, at once, where `vision` is given and is not the model of the corpus
    """

    def __init__(self, manifest: Manifest | None, vision: str | Path | None, device: torch.device) -> None:
        self.manifest, self.vision, self.device = manifest, vision, device
        self.model: VisionModel | None = None
        self.checkpoint = self.find() if vision is not None else None

    def __call__(self, picture: str | Path | Image.Image) -> tuple[Tensor, Tensor]:
        """float16 [n, D] and boxes float32 [n, 4] on the device. UserError for a picture that cannot be used."""
        if self.model is None:
            self.checkpoint = self.checkpoint or self.find()
            self.model = VisionModel(self.checkpoint, Extraction.of_facts(self.arguments()), self.device)
        if isinstance(picture, Image.Image):
            where, seen = "a picture", as_seen(picture)
        else:
            where, seen = str(picture), opened(Path(picture))
        pixels = self.model.pixels(seen, where)
        self.model.check(pixels, where)
        regions = self.model([pixels])[0]
        with np.errstate(over="ignore"):
            features = torch.from_numpy(regions.features.astype(np.float16))
        assert self.manifest is not None
        if features.ndim != 2 or features.shape[1] != self.manifest.feature_dim or not bool(features.isfinite().all()):
            raise UserError(f"{where}: its features cannot be used (shape {list(features.shape)}, or beyond float16); {INSTEAD}.")
        return features.to(self.device), torch.from_numpy(regions.boxes).to(self.device)

    def arguments(self) -> dict[str, Any]:
        """Those of tagsds-extract that made the corpus. UserError where nothing says how its features were made."""
        if self.manifest is None:
            raise UserError(
                f"a picture needs the corpus, whose manifest says how features are made; give it to load(), or {INSTEAD}."
            )
        made_by, path = self.manifest.made_by, self.manifest.folder / "manifest.json"
        if made_by.get("command") != "tagsds-extract":
            raise UserError(
                f"the features of {self.manifest.folder} were not made by tagsds-extract, so none can be made alike; {INSTEAD}."
            )
        found = made_by.get("arguments")
        if fault := problem(found, ARGUMENTS, "arguments"):
            raise UserError(f"{path} does not say how its features were made ({fault}); copy it again.")
        return found  # type: ignore[return-value]

    def find(self) -> Checkpoint:
        """The model's files, held against the checksums of the manifest."""
        arguments = self.arguments()
        assert self.manifest is not None
        name = str(self.vision or self.manifest.made_by.get("model") or "")
        if self.vision is None and not (name and on_this_disk(name)):
            named = f"'{name[:200]}' is not on this disk" if name else "is not named in the manifest"
            raise UserError(f"the vision model of {self.manifest.folder} {named}; give its folder: load(..., vision=FOLDER).")
        checkpoint = find_vision_checkpoint(name, "vision=")
        facts = checkpoint.facts()
        for file in sorted({*facts, *arguments["model"]}):
            if facts.get(file) != arguments["model"].get(file):
                raise UserError(
                    f"{checkpoint.folder / file} is not what {self.manifest.folder} was extracted with (missing, or other bytes); "
                    "give the folder of that model: load(..., vision=FOLDER)."
                )
        return checkpoint


def is_picture(item: Any) -> bool:
    """Whether it is meant as a picture: an opened one or a path. A string is one where it ends as a file of pictures does and the
    file is there."""
    if isinstance(item, str):
        return Path(item).suffix.lower() in SUFFIXES and is_file(Path(item))
    return isinstance(item, (Path, Image.Image))


def opened(path: Path) -> Image.Image:
    """A file as it is seen."""
    if not is_file(path):
        raise UserError(f"{path} does not exist; check the path of the picture.")
    try:
        return decode(path)
    except BrokenError as error:
        raise UserError(f"{path}: the picture cannot be decoded ({error}); copy it again.") from error


def as_seen(picture: Image.Image) -> Image.Image:
    """An opened picture in RGB. UserError where Pillow cannot decode it."""
    try:
        return upright(picture)
    except Exception as error:  # Pillow raises whatever a damaged file provokes
        raise UserError(f"the picture cannot be decoded ({str(error) or type(error).__name__}); open it again.") from error
