"""A matcher from outside the package: the mean of the projected regions against the mean of the words (docs/extend/matcher.md)."""

from tagsds.models.matchers import MatcherKind
from tests.extend.mean_matcher.config import MeanConfig
from tests.extend.mean_matcher.model import MeanMatcher
from tests.extend.mean_matcher.settings import MeanSettings

KIND = MatcherKind(MeanSettings, MeanConfig, MeanMatcher)
