"""The Hugging Face folder of a model in training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from tagsds.engine.weights import fill, fresh_copy, whole_state
from tagsds.errors import UserError, reason
from tagsds.files import write_checksums
from tagsds.models.card import Card
from tagsds.ranks import World


def export(
    model: PreTrainedModel, tokenizer, folder: Path, trained_heads: list[str], world: World, stage: int, card: Callable[[], Card],
    weights: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """A Hugging Face folder in fp32 (the optimiser's master weights where training ran in half precision), with its card. It
    replaces the folder that was there. Collective; the state of the random generators is left as it was. `weights`: what is
    written in place of the model's own (a `whole_state`). UserError where the disk does not take it; the folder that was there is
    then untouched."""
    state = whole_state(model, stage) if weights is None else weights
    why = ""
    if world.is_main:
        heads = {"trained_heads": sorted({*model.config.trained_heads, *trained_heads})} if trained_heads else {}
        whole = fresh_copy(model, **heads)
        fill(whole, state)
        temporary = folder.with_name(folder.name + ".tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            whole.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            card().write(temporary)
            write_checksums(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except Exception as error:  # safetensors raises its own class for a full disk
            if not isinstance(error, OSError) and "SafetensorError" not in type(error).__name__:
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            why = reason(error)
    if why := world.agree_on_text(why):
        raise UserError(f"{folder} could not be written ({why}); make room, and go on with --resume.")
