"""A stage's objective: which negatives and which losses it uses."""

from tagsds.objectives.pretrain import PretrainObjective
from tagsds.objectives.report import Report
from tagsds.objectives.retrieval import RetrievalObjective

OBJECTIVES: dict[str, type[PretrainObjective] | type[RetrievalObjective]] = {
    "pretrain": PretrainObjective,
    "retrieval": RetrievalObjective,
}

__all__ = ["OBJECTIVES", "PretrainObjective", "Report", "RetrievalObjective"]
