"""Evaluators by name: what `tagsds-evaluate` and training's validation run (docs/extend/evaluator.md)."""

from tagsds.evaluators.protocol import Evaluator, Plan, Subject
from tagsds.evaluators.registry import EVALUATORS, check_evaluators, make_evaluators, prepare_evaluators, run_evaluators

__all__ = [
    "EVALUATORS", "Evaluator", "Plan", "Subject", "check_evaluators", "make_evaluators", "prepare_evaluators", "run_evaluators",
]  # fmt: skip
