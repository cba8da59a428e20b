"""VSRN (arXiv 1909.02701): its config, its settings in a recipe, its model, and the layout of its authors' checkpoints."""

from tagsds.models.matchers.vsrn.config import VsrnConfig
from tagsds.models.matchers.vsrn.model import VSRN
from tagsds.models.matchers.vsrn.published import VsrnLayout
from tagsds.models.matchers.vsrn.settings import VsrnSettings

__all__ = ["VSRN", "VsrnConfig", "VsrnLayout", "VsrnSettings"]
