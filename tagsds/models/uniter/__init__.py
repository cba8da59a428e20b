"""UNITER (arXiv 1909.11740): config, encoder on packed pairs, heads."""

from tagsds.models.uniter.config import UniterConfig
from tagsds.models.uniter.encoder import Extent, Layout, UniterModel

__all__ = ["Extent", "Layout", "UniterConfig", "UniterModel"]
