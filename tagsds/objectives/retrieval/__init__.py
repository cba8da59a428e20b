"""Fine-tuning for retrieval: an objective is a list of terms over one packed forward.

    objective.py   draw, pack, encode once, ask each term
    terms/         one file a loss: what it wants from the forward, and its value
    draws.py       what the terms draw without gradient, shared by those that need the same
    forward.py     the pairs and positions that the terms want, and the states they get
"""

from tagsds.objectives.retrieval.objective import RetrievalObjective, loss_terms
from tagsds.objectives.retrieval.terms import TERMS

__all__ = ["TERMS", "RetrievalObjective", "loss_terms"]
