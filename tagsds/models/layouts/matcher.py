"""What a matcher's folder says of checkpoints by its authors' code: `published.py` of the folder, read by published/matchers.py.

A file has the states `img`, `txt` and perhaps `cap`; keys here are `img.KEY` and so on. The repositories of VSRN, SCAN and BFAN
descend from that of VSE++, so names and options are much alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from tagsds.errors import UserError
from tagsds.models.layouts.rules import Rule, copies

GRU = tuple(f"{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh"))
BOTH_WAYS = (*GRU, *(f"{name}_reverse" for name in GRU))
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Options:
    """Options of a file's training, with those of --option over them."""

    path: Path
    values: Mapping[str, Any]

    def required(self, key: str) -> Any:
        if key not in self.values:
            raise UserError(f"{self.path} does not carry the option {key} of its training; give it with --option {key}=VALUE.")
        return self.values[key]

    def number(self, key: str) -> float:
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{self.path} has {key}={value!r} among its options, which is no number; give --option {key}=NUMBER.")
        return float(value)


class MatcherLayout(ABC):
    """The layout of one kind of matcher.

    needed    options behind which another formula stands, with the one value that is built here
    choices   options that choose among ours
    """

    needed: ClassVar[dict[str, Any]] = {}
    choices: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def recognises(self, keys: Collection[str], options: Mapping[str, Any]) -> bool:
        """Whether a file with these keys and options can only be of this kind."""

    @abstractmethod
    def rules_of_file(self, keys: Collection[str]) -> list[Rule]:
        """One rule for each parameter that a file with these keys carries."""

    @abstractmethod
    def rules_of_model(self, model: Any) -> list[Rule]:
        """One rule for each parameter of a model of ours. UserError where the authors' code would compute something else."""

    @abstractmethod
    def settings(self, theirs: Mapping[str, Tensor], options: Options) -> dict[str, Any]:
        """Arguments of our config beside vocab_size, region_dim, word_size and embed_size. UserError where an option is absent or
        stands for another formula."""

    def notes(self, keys: Collection[str]) -> list[str]:
        """What the user should know of a conversion."""
        return []

    @abstractmethod
    def options(self, config: Any, parts: Collection[str]) -> dict[str, Any]:
        """The authors' options for a config of ours, beside the shared ones; `parts`: the states that are written."""

    def default_options(self, config: Any) -> dict[str, Any]:
        """Options that hold where the file that the model came from had no others."""
        return {}

    def refuse_other_formulas(self, options: Options) -> None:
        for key, needed in self.needed.items():
            if options.values.get(key, needed) != needed:
                raise UserError(f"{options.path} was trained with {key}={options.values[key]}; only {key}={needed} is built here.")


def shared_rules(gru: Collection[str]) -> list[Rule]:
    """The projection of regions, the words and their GRU; `gru`: GRU or BOTH_WAYS."""
    rules = copies([("img.fc", "project")]) + copies([("txt.embed", "text.word")], ["weight"])
    return rules + copies([("txt.rnn", "text.gru")], gru)
