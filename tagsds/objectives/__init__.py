"""A stage's objective: which negatives and which losses it uses."""

from tagsds.objectives.matching import MatchingObjective
from tagsds.objectives.output import StepOutput
from tagsds.objectives.pretrain import PretrainObjective
from tagsds.objectives.protocol import Objective
from tagsds.objectives.retrieval import RetrievalObjective

OBJECTIVES: dict[str, type[Objective]] = {
    "pretrain": PretrainObjective,
    "retrieval": RetrievalObjective,
    "matching": MatchingObjective,
}

__all__ = ["OBJECTIVES", "MatchingObjective", "Objective", "PretrainObjective", "RetrievalObjective", "StepOutput"]
