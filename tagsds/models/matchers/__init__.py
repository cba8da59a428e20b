"""The matchers: each compares images and captions that were encoded apart from one another.

A matcher is one folder here and one line in `MATCHERS` (docs/extend/matcher.md).
"""

from transformers import AutoConfig, AutoModel

from tagsds.models.matchers.bfan import BFAN, BfanConfig, BfanLayout, BfanSettings
from tagsds.models.matchers.config import MatcherConfig
from tagsds.models.matchers.kind import MatcherKind
from tagsds.models.matchers.matcher import Encoded, Matcher
from tagsds.models.matchers.scan import SCAN, ScanConfig, ScanLayout, ScanSettings
from tagsds.models.matchers.settings import MatcherSettings
from tagsds.models.matchers.vsrn import VSRN, VsrnConfig, VsrnLayout, VsrnSettings

MATCHERS: dict[str, MatcherKind] = {  # the first is the default of `matcher.kind`
    "vsrn": MatcherKind(VsrnSettings, VsrnConfig, VSRN, VsrnLayout()),
    "scan": MatcherKind(ScanSettings, ScanConfig, SCAN, ScanLayout()),
    "bfan": MatcherKind(BfanSettings, BfanConfig, BFAN, BfanLayout()),
}


def register(name: str, kind: MatcherKind) -> None:
    """Make a matcher known by its name in recipes, and by its config's model_type to AutoConfig and AutoModel."""
    MATCHERS[name] = kind
    AutoConfig.register(kind.config.model_type, kind.config, exist_ok=True)
    AutoModel.register(kind.config, kind.model, exist_ok=True)


__all__ = [
    "BFAN", "MATCHERS", "SCAN", "VSRN", "BfanConfig", "BfanSettings", "Encoded", "Matcher", "MatcherConfig", "MatcherKind",
    "MatcherSettings", "ScanConfig", "ScanSettings", "VsrnConfig", "VsrnSettings", "register",
]  # fmt: skip
