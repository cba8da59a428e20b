"""What a matcher's folder tells everything else."""

from __future__ import annotations

from dataclasses import dataclass

from tagsds.models.layouts.matcher import MatcherLayout
from tagsds.models.matchers.config import MatcherConfig
from tagsds.models.matchers.matcher import Matcher
from tagsds.models.matchers.settings import MatcherSettings


@dataclass(frozen=True)
class MatcherKind:
    """settings   group `matcher` of a recipe of this kind; its field `kind` has the name in the registry as its default
    config     the Hugging Face config, whose `model_type` is told apart from all others
    model      made from the config
    layout     of checkpoints by its authors' code, for tagsds-convert; None where there are none
    """

    settings: type[MatcherSettings]
    config: type[MatcherConfig]
    model: type[Matcher]
    layout: MatcherLayout | None = None
