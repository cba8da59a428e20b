"""BFAN (arXiv 1909.11416): its config, its settings in a recipe, its model, and the layout of its authors' checkpoints."""

from tagsds.models.matchers.bfan.config import BfanConfig
from tagsds.models.matchers.bfan.model import BFAN
from tagsds.models.matchers.bfan.published import BfanLayout
from tagsds.models.matchers.bfan.settings import BfanSettings

__all__ = ["BFAN", "BfanConfig", "BfanLayout", "BfanSettings"]
