"""Checkpoints of SCAN's repository (arXiv 1803.08024)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tagsds.errors import UserError
from tagsds.models.layouts.matcher import BOTH_WAYS, MatcherLayout, Options, shared_rules
from tagsds.models.layouts.rules import Rule

POOLINGS = {"LogSumExp": "lse", "Mean": "avg"}


class ScanLayout(MatcherLayout):
    """Two states, and the direction of the attention among the options."""

    needed = {  # noqa: RUF012
        "raw_feature_norm": "clipped_l2norm", "bi_gru": True, "no_imgnorm": False, "no_txtnorm": False, "num_layers": 1,
    }  # fmt: skip
    choices = ("cross_attn", "agg_func", "lambda_softmax", "lambda_lse")

    def recognises(self, keys: Collection[str], options: Mapping[str, Any]) -> bool:
        return "cross_attn" in options and "focal_type" not in options  # BFAN's code descends from this one

    def rules_of_file(self, keys: Collection[str]) -> list[Rule]:
        return shared_rules(BOTH_WAYS)

    def rules_of_model(self, model: Any) -> list[Rule]:
        return shared_rules(BOTH_WAYS)

    def settings(self, theirs: Mapping[str, Tensor], options: Options) -> dict[str, Any]:
        pooling = options.required("agg_func")
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise UserError(f"{options.path} was trained with agg_func={pooling}; only {' and '.join(POOLINGS)} are built here.")
        numbers = {key: options.number(key) for key in ("lambda_softmax", "lambda_lse")}
        return {"direction": options.required("cross_attn"), "pooling": POOLINGS[pooling], **numbers}

    def options(self, config: Any, parts: Collection[str]) -> dict[str, Any]:
        return {
            "cross_attn": config.direction,
            "agg_func": next(theirs for theirs, ours in POOLINGS.items() if ours == config.pooling),
            "lambda_softmax": config.lambda_softmax,
            "lambda_lse": config.lambda_lse,
        }
