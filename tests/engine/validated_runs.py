"""Several small trainings in one process, or in one of several ranks: `validated_runs.py DATA FOLDER NAME...` makes FOLDER/NAME of
each. What they should leave is in test_validation.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from tagsds import train
from tagsds.evaluators import EVALUATORS, Evaluator, Subject
from tests.launch import TINY

ENCODER = [*TINY, "optimiser.steps=8", "log.checkpoint_every=2", "log.keep_checkpoints=0", "model.num_hidden_layers=1"]
MATCHER = ["matcher.embed_size=12", "matcher.word_size=8", "matcher.caption_hidden=8", "batch.pairs=8", "optimiser.steps=6",
           "quintuplet.warmup_steps=1", "log.every=1", "log.checkpoint_every=2", "log.keep_checkpoints=0"]  # fmt: skip
LOOK = ["validate.every=2", "validate.first=6"]
AUGMENTED = ["augment.feature_noise=0.1", "augment.drop_regions=0.2", "augment.mirror=true", "augment.drop_words=0.1"]
AVERAGED = ["optimiser.average=0.8", "optimiser.average_every=2"]
FROZEN = ["loss.syn=0.5", "loss.mlm=0.1", "synthetic.writer=frozen"]
SCRIPT = {2: 1.0, 4: 3.0, 6: 2.0, 8: 3.0, 10: 2.5}  # step -> figure: best at 4, as good again at 8


class Scripted(Evaluator):
    """A figure that falls when the script says so; the step is the count of the validations before."""

    name = "scripted"
    needs_matrix = False
    seen = 0

    def figures(self, subject: Subject) -> dict[str, Any]:
        Scripted.seen += 1
        return {"scripted": {"figure": SCRIPT[2 * Scripted.seen]}}


EVALUATORS["scripted"] = Scripted
BY_SCRIPT = [*LOOK, "validate.evaluators=[scripted]", "validate.keep=scripted/figure", "validate.patience=3", "optimiser.steps=20"]
RUNS: dict[str, tuple[str, str, list[str]]] = {
    "plain": ("published-base", "zero1", ENCODER),
    "watched": ("published-base", "zero1", [*ENCODER, *LOOK]),
    "each-step": ("published-base", "zero1", [*ENCODER, *AUGMENTED, "log.export_at=[2,4,6]"]),
    "averaged": ("published-base", "zero1", [*ENCODER, *AUGMENTED, *AVERAGED, *LOOK]),
    "frozen": ("published-base", "zero1", [*ENCODER, *FROZEN, "optimiser.steps=4"]),
    "averaged-in-parts": ("published-base", "zero3_bf16", [*ENCODER, *AVERAGED, *LOOK, "optimiser.steps=4"]),
    "stopped": ("published-base", "zero1", [*ENCODER, *BY_SCRIPT]),
    "still": ("published-base", "zero1", [*ENCODER, *LOOK, "optimiser.lr=0", "optimiser.steps=2"]),
    "half": ("published-base", "zero2_bf16", [*ENCODER, *LOOK, "optimiser.steps=4"]),
    "partitioned": ("published-base", "zero3_bf16", [*ENCODER, *LOOK, "optimiser.steps=4"]),
    "listed": ("published-base", "zero1", [*ENCODER, *LOOK, "validate.shortlist={folder}/plain-matcher", "validate.rerank=30"]),
    "plain-matcher": ("coco-boxes-vsrn", "zero1", MATCHER),
    "watched-matcher": ("coco-boxes-vsrn", "zero1", [*MATCHER, *LOOK]),
}


def run(data: str, folder: Path, name: str) -> None:
    """`NAME@STEP` goes on with a copy of the run NAME as a kill right after the checkpoint of STEP leaves it; `NAME@` as it is."""
    name, resumed, step = name.partition("@")
    recipe, ds_config, settings = RUNS[name]
    output = folder / (f"{name}-resumed" if resumed else name)
    if resumed:
        shutil.copytree(folder / name, output)
    if step:
        shutil.rmtree(output / "export")
        (output / "checkpoints" / "latest").write_text(f"step{step}")
        for later in (output / "checkpoints").glob("step*"):
            if int(later.name[4:]) > int(step):
                shutil.rmtree(later)
    command = ["--recipe", recipe, "--data", data, "--output", str(output), "--deepspeed_config", f"ds_configs/{ds_config}.json"]
    train.main([*command, *(["--resume"] if resumed else []), *(text.replace("{folder}", str(folder)) for text in settings)])


if __name__ == "__main__":
    for name in sys.argv[3:]:
        if not name.startswith("--"):  # --local_rank of a launcher
            run(sys.argv[1], Path(sys.argv[2]), name)
