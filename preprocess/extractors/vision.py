"""A vision model and its image processor, from a folder or a name that transformers can resolve; no code of the folder is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForObjectDetection
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as DETECTORS
from transformers.utils import logging

from tagsds.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Vision:
    """kind       grid or detector
    files         config, processor and weights, whose checksums are part of the corpus's identity (empty for a name)
    """

    name: str
    kind: str
    config: Any
    processor: Any
    model: Any
    device: torch.device
    dtype: torch.dtype
    files: list[Path]


def load_vision(name: str, kind: str, device: str, dtype: str) -> Vision:
    """`kind`: grid, detector, or auto: what the config's model type is known for. `device`: auto, cpu, cuda, ..."""
    logging.disable_progress_bar()
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the folder of a vision model as save_pretrained writes it.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's and the parsers' errors have no common kind
        raise UserError(f"--model {name} cannot be read as a model of transformers ({said(error)}); check the path.") from error
    is_detector = config.model_type in DETECTORS
    if kind == "auto":
        kind = "detector" if is_detector else "grid"
    if kind == "detector" and not is_detector:
        raise UserError(f"--model {name} is of type '{config.model_type}', which detects no objects; use --kind grid.")
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        wanted = "preprocessor_config.json, which says how its pictures are resized"
        raise UserError(f"--model {name} has no readable {wanted} ({said(error)}); add the file.") from error
    auto = AutoModelForObjectDetection if kind == "detector" else AutoModel
    try:
        model, info = auto.from_pretrained(name, trust_remote_code=False, output_loading_info=True, dtype=torch.float32)
    except Exception as error:
        raise UserError(f"the weights of --model {name} cannot be loaded ({said(error)}); copy them again.") from error
    if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):  # the pooled vector is not used here
        raise UserError(f"--model {name} lacks {len(missing)} weights of its config (first: {missing[0]}); copy them again.")
    model = getattr(model, "vision_model", model)  # CLIP and its like hold a text tower as well
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    files = [path for path in sorted(folder.iterdir()) if is_of_model(path)] if folder.is_dir() else []
    return Vision(name, kind, config, processor, model.to(place).eval(), place, DTYPES[dtype], files)


def is_of_model(path: Path) -> bool:
    """Whether a file of the folder shapes the features."""
    return path.name in ("config.json", "preprocessor_config.json") or path.suffix in (".safetensors", ".bin")


def said(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
