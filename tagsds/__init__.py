"""Image-text retrieval with an encoder that writes its own hard negatives.

    retriever = tagsds.load("runs/tagsdc", "data/world")
    retriever.search("a red circle left of a square", 5)

Importing the package loads nothing; `tagsds.load` and the classes it returns come from `tagsds.api` when they are first named.
Neither needs DeepSpeed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tagsds.api import Hit, Negative, Negatives, Regions, Retriever, Rules, UserError, Word, load

__all__ = ["Hit", "Negative", "Negatives", "Regions", "Retriever", "Rules", "UserError", "Word", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("tagsds.api"), name)
    raise AttributeError(f"module 'tagsds' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
