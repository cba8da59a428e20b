"""The loss terms of the retrieval objective, by the name of their weight in `loss`.

A further term is one more entry here; its weight is then `loss.more.<name>` of a recipe.
"""

from collections.abc import Callable

from tagsds.objectives.retrieval.settings import LossConfig
from tagsds.objectives.retrieval.terms.cascade import WEIGHT as CASCADE_WEIGHT
from tagsds.objectives.retrieval.terms.cascade import Cascade
from tagsds.objectives.retrieval.terms.contrast import Contrast, ContrastWritten
from tagsds.objectives.retrieval.terms.distillation import Distillation, Teachers, WrittenDistillation, load_teachers
from tagsds.objectives.retrieval.terms.quintuplet import Quintuplet
from tagsds.objectives.retrieval.terms.ranking import ImageToText, TextToImage
from tagsds.objectives.retrieval.terms.synthetic import Synthetic
from tagsds.objectives.retrieval.terms.term import Term, TermOutput
from tagsds.objectives.retrieval.terms.words import Correction, Discrimination, MaskedWords

TERMS: dict[str, Callable[[LossConfig], Term]] = {
    "t2i": lambda loss: TextToImage(loss.margin),
    "i2t": lambda loss: ImageToText(loss.margin),
    "syn": lambda loss: Synthetic(loss.margin),
    "mlm": lambda loss: MaskedWords(),
    "disc": lambda loss: Discrimination(loss.weight_replaced, loss.weight_kept),
    "corr": lambda loss: Correction(),
    "contrast": lambda loss: Contrast(),
    "contrast_syn": lambda loss: ContrastWritten(),
    "cascade": lambda loss: Cascade(),
}

__all__ = [
    "CASCADE_WEIGHT",
    "TERMS",
    "Distillation",
    "Quintuplet",
    "Teachers",
    "Term",
    "TermOutput",
    "WrittenDistillation",
    "load_teachers",
]
