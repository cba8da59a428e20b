"""SCAN (arXiv 1803.08024): its config, its settings in a recipe, its model, and the layout of its authors' checkpoints."""

from tagsds.models.matchers.scan.config import ScanConfig
from tagsds.models.matchers.scan.model import SCAN
from tagsds.models.matchers.scan.published import ScanLayout
from tagsds.models.matchers.scan.settings import ScanSettings

__all__ = ["SCAN", "ScanConfig", "ScanLayout", "ScanSettings"]
