"""Further checkpoints that an evaluator loads beside the one it evaluates: an ensemble's members, a matcher that shortlists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tagsds.evaluators.protocol import Plan, Subject
from tagsds.files import sha256_of
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config
from tagsds.scoring.protocol import RetrievalModel, model_class


@dataclass
class Further:
    """path as given, its Hugging Face folder and the class in it; `head`: what it scores with, once it is loaded."""

    path: Path
    folder: Path
    config: Any
    model: type[RetrievalModel]
    head: str = ""

    @staticmethod
    def find(path: Path) -> Further:
        """Config only. UserError where there is none."""
        folder, _ = find_checkpoint(path)
        config = read_config(folder)
        return Further(path, folder, config, model_class(config))

    def check(self, plan: Plan) -> None:
        """UserError where the shards are not what it was trained on."""
        check_data(self.config, self.folder, plan.manifest)

    def subject(self, of: Subject, head: str = "") -> Subject:
        """The same corpus with this model, its weights loaded. The state of the random generators is left as it was. `head`: which
        one will be used, where that is not the one that ranks pairs."""
        devices = [of.bank.device] if of.bank.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            model = load_model(self.folder)
        torch.nn.Module.to(model, of.bank.device)  # in place; transformers' own `to` is not typed
        files = of.files.for_weights(self.folder) if of.files else None
        found = replace(of, model=model, scorer=None, scores={}, kept={}, costs={}, files=files)
        self.head = head or found.pair_scorer.ready()
        return found

    def source(self) -> dict[str, str | None]:
        """What it was, for the results file: its folder, its weights, what it scores with."""
        weights = self.folder / "model.safetensors"
        digest = sha256_of(weights) if weights.is_file() else None
        return {"checkpoint": str(self.folder.resolve()), "weights_sha256": digest, "head": self.head}
