"""A vision model of Hugging Face from a folder or by name: resolved, identified, loaded without running code from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForObjectDetection, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from tagsds.errors import UserError, first_line
from tagsds.files import read_json_object, sha256_of

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
IGNORED = ("pooler.", "vision_model.pooler.")  # weights a checkpoint may lack: nothing here reads what they make


@dataclass(frozen=True)
class Checkpoint:
    """The files of a model."""

    folder: Path
    weights: list[Path]
    config: dict[str, Any]

    @property
    def processor_file(self) -> Path:
        """The first of the files that may describe the image processor."""
        return next(path for name in PROCESSOR_FILES if (path := self.folder / name).is_file())

    def kind(self) -> str:
        """What --kind auto means for it: detector or grid."""
        architecture = (self.config.get("architectures") or [""])[0]
        if architecture:
            return "detector" if architecture.endswith("ForObjectDetection") else "grid"
        return "detector" if self.config.get("model_type") in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES else "grid"

    def facts(self) -> dict:
        """Name, size and checksum of each file that shapes the features; whole files, whatever their size."""
        paths = [self.folder / "config.json", *(self.folder / name for name in PROCESSOR_FILES), *self.weights]
        return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths if path.is_file()}


def find_vision_checkpoint(name: str, option: str = "--model") -> Checkpoint:
    """The files of a folder, or of a name that the Hugging Face hub or its cache knows; UserError for what is missing, in which
    `option` is how the name was given."""
    folder = Path(name) if Path(name).is_dir() else _from_hub(name, option)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a folder written by save_pretrained to {option}.")
    config = read_json_object(path)
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise UserError(
            f"{folder} has no {PROCESSOR_FILES[0]}, which says how pictures are scaled for the model; "
            "copy it from where the model was published."
        )
    weights = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not weights:
        raise UserError(f"{folder} holds neither model*.safetensors nor pytorch_model*.bin; copy the weights there.")
    return Checkpoint(folder, weights, config)


def _from_hub(name: str, option: str) -> Path:
    """The folder of the hub's cache, filled if it can be reached: JSON files and weights, nothing that runs."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "model*.safetensors"]))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:  # no such name, no network, no permission: many classes
        raise UserError(
            f"{option} {name} is no folder, and not a name that could be loaded ({type(error).__name__}); give the model's folder."
        ) from error
    return folder


def on_this_disk(name: str) -> bool:
    """Whether it is a folder, or a name whose files lie in the hub's cache; the network is not asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except (OSError, ValueError):  # no name that the hub could have; HFValidationError is a ValueError
        return False


def load_processor(checkpoint: Checkpoint) -> Any:
    """The image processor in its Pillow form, so that the same pixels come out with and without torchvision."""
    try:
        processor = AutoImageProcessor.from_pretrained(
            checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{checkpoint.processor_file} describes no image processor that loads ({first_line(error)}); "
            "take the file from where the model was published."
        ) from error
    if getattr(processor, "backend", "pil") != "pil":
        raise UserError(f"{checkpoint.processor_file}: {type(processor).__name__} has no Pillow form; give another model.")
    return processor


def load_vision_model(checkpoint: Checkpoint, kind: str, device: torch.device) -> PreTrainedModel:
    """The model in float32 on the device, in inference mode; UserError where weights are missing or would run code."""
    auto: Any = AutoModelForObjectDetection if kind == "detector" else AutoModel
    try:
        with _quiet():
            model, loaded = auto.from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=checkpoint.weights[0].suffix == ".safetensors",
                weights_only=True,  # of a .bin: tensors, no pickled code
                dtype=torch.float32,
                output_loading_info=True,
            )
    except ImportError as error:
        raise UserError(f"{checkpoint.folder}: the model needs a package that is missing ({first_line(error)}).") from error
    except UnpicklingError as error:
        raise UserError(
            f"{checkpoint.weights[0]} is damaged, or holds more than tensors, which could run code and is not read; "
            "get the weights as safetensors."
        ) from error
    except Exception as error:  # an unknown type, a damaged file: each has a class of its own
        raise UserError(
            f"{checkpoint.folder} does not load as {'a detector' if kind == 'detector' else 'a vision model'} "
            f"({first_line(error)}); check --kind, or copy the model again."
        ) from error
    missing = sorted(name for name in loaded["missing_keys"] if not name.startswith(IGNORED))
    missing += sorted(str(entry[0]) for entry in loaded["mismatched_keys"])
    if missing:
        raise UserError(
            f"{checkpoint.folder}: the weights lack {missing[0]} (and {len(missing) - 1} more), which would be random; "
            f"check --kind {kind}, or copy the model again."
        )
    return model.eval().requires_grad_(False).to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar and its table of unused weights (the text tower, the pooler): what matters is checked here."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
