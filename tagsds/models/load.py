"""Load an exported model, and hold it against the shards before any long work starts."""

from __future__ import annotations

import json
from pathlib import Path

from tagsds.data.shards import Manifest
from tagsds.data.vocabulary import Vocabulary
from tagsds.errors import UserError
from tagsds.models.config import UniterConfig
from tagsds.models.uniter import UniterModel


def export_folder(path: Path | str) -> Path:
    """The Hugging Face folder of a run folder, or the folder itself."""
    path = Path(path)
    for folder in (path, path / "export"):
        if (folder / "model.safetensors").is_file():
            return folder
    unfinished = " (the run has checkpoints but no export: let it finish with --resume)" if (path / "checkpoints").is_dir() else ""
    raise UserError(f"{path} holds no model.safetensors, nor does {path / 'export'}{unfinished}.")


def load_model(folder: Path, dropout: tuple[float, float] | None = None) -> UniterModel:
    """From a Hugging Face folder on disk; `dropout` (hidden states, attention weights) overrides the config's."""
    try:
        config = UniterConfig.from_dict(json.loads((folder / "config.json").read_text()))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}).") from error
    if dropout is not None:
        config.hidden_dropout_prob, config.attention_probs_dropout_prob = dropout
    try:
        model, info = UniterModel.from_pretrained(
            folder, config=config, local_files_only=True, output_loading_info=True
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{folder} does not load: {str(error).splitlines()[0]}") from error
    if info["missing_keys"] or info["unexpected_keys"]:
        odd = sorted([*info["missing_keys"], *info["unexpected_keys"]])[0]
        raise UserError(f"{folder / 'model.safetensors'} does not fit its config.json: '{odd}' is missing or unknown.")
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # off the mapped file, whose tensors may lie unaligned
    return model


def check_against(model: UniterModel, manifest: Manifest, vocab: Vocabulary, name: str) -> None:
    """Widths, vocabulary and lengths must agree."""
    config, where = model.config, manifest.folder / "manifest.json"
    if config.region_dim != manifest.feature_dim:
        raise UserError(
            f"{name} reads region features of width {config.region_dim}, but {where} says feature_dim={manifest.feature_dim}; "
            f"use the checkpoint these features were made for, or pack the features it was trained on."
        )
    if config.vocab_size != vocab.size:
        raise UserError(
            f"{name} knows {config.vocab_size} word pieces, but the tokenizer beside {where} has {vocab.size}; "
            f"pack the corpus with the checkpoint's tokenizer (tagsds-pack --tokenizer)."
        )
    if manifest.max_caption_pieces > config.max_position_embeddings:
        raise UserError(
            f"{where}: a caption has {manifest.max_caption_pieces} word pieces, but {name} has "
            f"{config.max_position_embeddings} positions; pack again with --max-caption-pieces."
        )
