"""The matchers of AOQ: each compares images and captions that were encoded apart from one another."""

from tagsds.models.matchers.bfan import BFAN
from tagsds.models.matchers.config import BfanConfig, MatcherConfig, ScanConfig, VsrnConfig
from tagsds.models.matchers.matcher import Encoded, Matcher
from tagsds.models.matchers.scan import SCAN
from tagsds.models.matchers.vsrn import VSRN

MATCHERS: dict[str, tuple[type[MatcherConfig], type[Matcher]]] = {
    "vsrn": (VsrnConfig, VSRN),
    "scan": (ScanConfig, SCAN),
    "bfan": (BfanConfig, BFAN),
}

__all__ = ["BFAN", "MATCHERS", "SCAN", "VSRN", "BfanConfig", "Encoded", "Matcher", "MatcherConfig", "ScanConfig", "VsrnConfig"]
