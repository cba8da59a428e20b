"""Checkpoints of BFAN's repository (arXiv 1909.11416)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tagsds.models.layouts.matcher import BOTH_WAYS, MatcherLayout, Options, shared_rules
from tagsds.models.layouts.rules import Rule


class BfanLayout(MatcherLayout):
    """Two states, and the kind of focal attention among the options."""

    needed = {"no_imgnorm": False, "no_txtnorm": False, "num_layers": 1}  # noqa: RUF012
    choices = ("focal_type", "lambda_softmax")

    def recognises(self, keys: Collection[str], options: Mapping[str, Any]) -> bool:
        return "focal_type" in options

    def rules_of_file(self, keys: Collection[str]) -> list[Rule]:
        return shared_rules(BOTH_WAYS)

    def rules_of_model(self, model: Any) -> list[Rule]:
        return shared_rules(BOTH_WAYS)

    def settings(self, theirs: Mapping[str, Tensor], options: Options) -> dict[str, Any]:
        return {"focal": options.required("focal_type"), "lambda_softmax": options.number("lambda_softmax")}

    def options(self, config: Any, parts: Collection[str]) -> dict[str, Any]:
        return {"focal_type": config.focal, "lambda_softmax": config.lambda_softmax}
