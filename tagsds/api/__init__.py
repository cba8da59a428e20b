"""What was trained, as a library: `load` gives a `Retriever` that scores, searches, proofreads and writes negatives."""

from tagsds.api.items import Hit, ImageLike, Regions
from tagsds.api.retriever import Retriever, load
from tagsds.errors import UserError
from tagsds.negatives.sentences import Change, Negative, Negatives, Rules
from tagsds.negatives.writer import SyntheticConfig
from tagsds.scoring.proofread import Word

__all__ = [
    "Change",
    "Hit",
    "ImageLike",
    "Negative",
    "Negatives",
    "Regions",
    "Retriever",
    "Rules",
    "SyntheticConfig",
    "UserError",
    "Word",
    "load",
]
