"""A tiny encoder of which every head counts as trained, as a run's folder leaves it."""

from __future__ import annotations

from pathlib import Path

from tagsds.data.vocabulary import load_tokenizer
from tagsds.formats.manifest import read_manifest
from tagsds.models import UniterModel
from tests.small_world import model_of

HEADS = ["itm", "rank", "mlm", "discriminate", "correct"]


def save_run(folder: Path, world: Path, heads: list[str] = HEADS, **changes) -> UniterModel:
    """folder/export with weights, config and tokenizer; the model in evaluation mode."""
    model = model_of(read_manifest(world), trained_heads=heads, **changes).eval()
    model.save_pretrained(folder / "export")
    load_tokenizer(world / "tokenizer").save_pretrained(folder / "export")
    return model
