"""A checkpoint's config.json and model.safetensors, held against each other before memory is taken for what they claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel

from tagsds.errors import UserError, first_line
from tagsds.files import read_json_object

WEIGHTS = "model.safetensors"
LARGEST = 1 << 20  # of a whole number in config.json: no width, vocabulary or count of layers is larger
REMEDY = "export or convert the checkpoint again"


def check_config(path: Path) -> None:
    """UserError where config.json is damaged, or holds a number that cannot be a size. (transformers makes a table of `num_labels`
    entries, for one.)"""
    config = read_json_object(path, REMEDY) if path.is_file() else {}
    if large := first_too_large(config):
        raise UserError(f"{path} has {large[-80:]}, which cannot be; {REMEDY}.")


def first_too_large(value: Any, place: str = "") -> str | None:
    """Where the first whole number outside +-LARGEST stands, None if there is none."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return next((found for key, one in items if (found := first_too_large(one, f"{place}.{key}".lstrip(".")))), None)
    return f"{place} of more than {LARGEST}" if isinstance(value, int) and abs(value) > LARGEST else None


def check_weights(folder: Path, config: Any) -> None:
    """UserError unless model.safetensors has the tensors of the config's model, in their shapes. Only the header is read, and the
    model is built on the meta device, once the file has at least as many tensors as the config has layers."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, "pt") as file:
            held = {name: file.get_slice(name) for name in list(file.keys())}
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in held.items()}
    except Exception as error:  # safetensors raises its own kind
        raise UserError(f"the weights in {folder} cannot be loaded ({first_line(error)}); export or copy them again.") from error
    if getattr(config, "num_hidden_layers", 0) > len(found):
        raise UserError(f"{path} holds {len(found)} tensors for {config.num_hidden_layers} layers of its config; {REMEDY}.")
    try:
        with torch.random.fork_rng([]), torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # sizes that fit no model raise what the first module they break raises
        raise UserError(f"{folder / 'config.json'} describes no model ({first_line(error)}); {REMEDY}.") from error
    for name, value in model.state_dict().items():
        shape, dtype = found.get(name, (tuple(value.shape), "F32"))
        if shape != tuple(value.shape) or value.is_floating_point() != dtype.startswith(("F", "BF")):
            raise UserError(
                f"{path} has {name} as {dtype} {list(shape)}, where its config means {list(value.shape)}; {REMEDY}."
            )
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)  # a tied parameter has several
    if absent := [tied[0] for tied in names.values() if not any(name in found for name in tied)]:
        raise UserError(f"{path} lacks {len(absent)} weights of its config (first: {absent[0]}); {REMEDY}.")
