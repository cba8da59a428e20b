"""Settings of the optimiser, of a step's batch, of what a run writes down and does in trouble: groups `optimiser`, `batch`, `log`
and `safety` of a recipe.

Their owner is tagsds/engine, which stands above `tagsds.config` and is the only importer of DeepSpeed; so they are here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tagsds.errors import UserError
from tagsds.settings import above_zero, not_negative, one_of


@dataclass
class BatchConfig:
    """One optimiser step sees pairs * accumulation * ranks true pairs."""

    pairs: int = 32
    """true pairs of one micro-batch on one rank; `acc` of the paper is pairs * accumulation"""
    tokens: int = 0
    """if set: `pairs` becomes this many tokens divided by the mean tokens of a pair (of the first window's pairs, where the corpus
    is walked through in windows), and stays so when the run is resumed"""
    accumulation: int = 1
    """micro-batches of one optimiser step on one rank"""
    activation_checkpointing: bool = False
    """of the encoder: keep what enters each layer, and run the layers again in backward. The numbers stay the same, dropout
    included; a micro-batch then holds the states of one layer at a time, for one further forward of the graph"""

    def check(self, group: str) -> None:
        above_zero(self, group, "pairs", "accumulation")
        not_negative(self, group, "tokens")


@dataclass
class OptimiserConfig:
    """Adam with decoupled weight decay, and its learning rate over the steps."""

    name: str = "adamw"
    """adamw (DeepSpeed's fused one on GPUs, its CPU one under offload, torch's elsewhere) or apex"""
    lr: float = 5e-5
    """highest learning rate"""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """decay a step of the running means of the gradient and of its square, both at least 0 and below 1"""
    eps: float = 1.0e-6
    """added to the root of Adam's second moment; the published encoder runs use 1e-6 (gradients of the down-weighted terms are
    as small as 1e-8), the matchers 1e-8"""
    eps_uncorrected: bool = False
    """add eps to the root of the second moment before its bias is corrected, as the AdamW of the published encoder runs does: in
    the usual form eps / sqrt(1 - beta2^t) at step t, 7 eps at the first one and eps in the long run"""
    weight_decay: float = 0.01
    """times the learning rate, of each step; not on biases and norms"""
    clip: float = 2.0
    """largest norm of the gradient; 0 = off"""
    steps: int = 5000
    """optimiser steps of the run"""
    warmup_steps: int = 500
    """steps of linear warm-up, then linear decay to zero at `steps`"""
    average: float = 0.0
    """if above 0: decay a step of a running mean of the weights (such as 0.999), which validations and exports then take in their
    place; the steps themselves go on from the weights. A copy of the weights in fp32 lies in each rank's host memory"""
    average_every: int = 10
    """steps between two updates of that mean"""
    decay_at: list[int] = field(default_factory=list)
    """if given: the rate stays constant instead, and is divided by ten at each of these steps"""

    def check(self, group: str) -> None:
        one_of(self, group, name=("adamw", "apex"))
        above_zero(self, group, "steps", "eps", "average_every")
        not_negative(self, group, "warmup_steps", "clip", "weight_decay")
        if not 0 <= self.average < 1:
            raise UserError(f"{group}.average={self.average} must be at least 0 and below 1.")
        if len(self.betas) != 2:
            raise UserError(f"{group}.betas={self.betas} must be two numbers.")


@dataclass
class LogConfig:
    """What is written down while a run goes on."""

    every: int = 10
    """steps between two rows of TensorBoard and log.jsonl"""
    panel_every: int = 250
    """steps between two text panels; 0: none"""
    checkpoint_every: int = 500
    """steps between two checkpoints; 0: only at the end"""
    keep_checkpoints: int = 2
    """newest checkpoints that are kept, besides the one of the best validation; 0: all"""
    checkpoint_in_background: bool = True
    """write checkpoints while training goes on: a rank needs host memory for a copy of its weights and moments"""
    export_at: list[int] = field(default_factory=list)
    """steps after which a Hugging Face folder export-step<N> is written besides the one at the end"""
    examples: int = 24
    """dev captions whose written negatives go into examples.json at the end"""

    def check(self, group: str) -> None:
        above_zero(self, group, "every")
        not_negative(self, group, "checkpoint_every", "keep_checkpoints", "panel_every", "examples")


@dataclass
class SafetyConfig:
    """What a run does when something goes wrong. None of it touches the numbers of a run in which nothing does."""

    skip_steps: int = 10
    """steps in a row that may be left out because a loss or a gradient is not finite; one more ends the run. Their captions are
    named in the run's skipped.jsonl"""
    hang_minutes: float = 30.0
    """a rank that takes no step for so long ends the run on all ranks; a rank that is gone does so after one minute. 0: neither"""
    long_hang_minutes: float = 240.0
    """the same during work of unknown length: mining, validation, export, the load of a window"""

    def check(self, group: str) -> None:
        not_negative(self, group, "skip_steps", "hang_minutes", "long_hang_minutes")
