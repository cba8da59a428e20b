"""A vision model with its image processor: pictures in, regions out, as tagsds-extract packs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from tagsds.errors import UserError
from tagsds.vision.checkpoint import Checkpoint, load_processor, load_vision_model
from tagsds.vision.detector import DetectorExtractor
from tagsds.vision.grid import GridExtractor
from tagsds.vision.regions import Extractor, Pixels, Regions

DETECTOR_FIELDS = ("threshold", "min_regions", "max_regions")


@dataclass(frozen=True)
class Extraction:
    """How regions are made of a model's output.

    kind          "grid": the patches of a vision transformer; "detector": the queries of a DETR-like detector
    pool          grid: patches are averaged to at most pool x pool cells; None: all
    threshold     detector: regions above this confidence,
    min_regions   but at least so many,
    max_regions   and at most so many
    bf16          the forward under autocast
    """

    kind: str
    pool: int | None = None
    threshold: float = 0.2
    min_regions: int = 10
    max_regions: int = 100
    bf16: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What of it shapes the regions of its kind, as a corpus's manifest holds it."""
        names = ("pool",) if self.kind == "grid" else DETECTOR_FIELDS
        return {"kind": self.kind, **{name: value for name, value in asdict(self).items() if name in names}}

    @staticmethod
    def of_facts(facts: Mapping[str, Any]) -> Extraction:
        """From the arguments in a manifest of tagsds-extract."""
        given = {name: facts[name] for name in ("kind", "pool", *DETECTOR_FIELDS) if name in facts}
        return Extraction(**given, bf16=facts.get("dtype") == "bf16")


class VisionModel:
    """Loaded, in inference mode, on the device. UserError where the files do not load as the model of this kind."""

    def __init__(self, checkpoint: Checkpoint, extraction: Extraction, device: torch.device) -> None:
        self.checkpoint, self.extraction, self.device = checkpoint, extraction, device
        self.processor = load_processor(checkpoint)
        model = load_vision_model(checkpoint, extraction.kind, device)
        if extraction.kind == "grid":
            self.extractor: Extractor = GridExtractor(checkpoint, model, self.processor, extraction.pool)
        else:
            limits = (extraction.threshold, extraction.min_regions, extraction.max_regions)
            self.extractor = DetectorExtractor(checkpoint, model, self.processor, *limits)

    def pixels(self, picture: Image.Image, where: object, thumbnail: bytes | None = None) -> Pixels:
        """A picture in RGB as the image processor leaves it, alone, so that it is padded for no other; `where` is for errors."""
        file = self.checkpoint.processor_file
        try:
            processed = self.processor(images=picture, return_tensors="pt")
        except (ValueError, RuntimeError, TypeError) as error:
            size = f"a picture of {picture.width} x {picture.height} pixels"
            raise UserError(
                f"{where}: {file} cannot be applied to {size} ({error}); leave the picture out, or correct the settings there."
            ) from error
        mask = processed.get("pixel_mask")
        values = processed["pixel_values"][0].float()
        return Pixels(values, None if mask is None else mask[0], picture.size, thumbnail)

    def check(self, pixels: Pixels, where: object) -> None:
        """UserError for what does not suit the model."""
        file, shape = self.checkpoint.processor_file, list(pixels.values.shape)
        if len(shape) != 3:
            raise UserError(
                f"{file}: {type(self.processor).__name__} makes an array {shape} of a picture, "
                "not [3, height, width]; give a model that takes whole pictures."
            )
        problem = self.extractor.check(pixels)
        if problem is not None:
            raise UserError(f"{where}: {file} {problem}; set size and crop_size there as the model's config says.")

    @torch.inference_mode()
    def __call__(self, batch: Sequence[Pixels]) -> list[Regions]:
        """Regions of checked pictures of one processed size, in one forward; features in float32."""
        values = torch.stack([pixels.values for pixels in batch]).to(self.device)
        masks = [pixels.mask for pixels in batch if pixels.mask is not None]
        mask = torch.stack(masks).to(self.device) if len(masks) == len(batch) else None
        with torch.autocast(self.device.type, torch.bfloat16) if self.extraction.bf16 else nullcontext():
            return self.extractor(list(batch), values, mask)
