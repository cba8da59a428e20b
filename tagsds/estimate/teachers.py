"""What the encoders of `distil.teachers` cost: each holds its weights in fp32 on every rank, and scores what t2i and i2t
hold, with distil.offline the candidates, with distil.synthetic what syn holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModel

from tagsds.estimate.corpus import Corpus
from tagsds.estimate.memory import FEWER_PAIRS, Encoder
from tagsds.estimate.parts import Part
from tagsds.estimate.work import Forward, Sizes
from tagsds.models.load import find_checkpoint, read_encoder_config

BYTES = 4  # of a weight and of a number of its states: fp32, whatever the student is in


@dataclass(frozen=True)
class Teacher:
    sizes: Sizes
    parameters: int


def read_teachers(folders: Sequence[str]) -> list[Teacher]:
    """By their config.json; no weights are read. UserError for one that is no encoder's folder."""
    teachers = []
    for name in folders:
        config = read_encoder_config(find_checkpoint(Path(name))[0])
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        teachers.append(Teacher(Sizes.of(config), sum(parameter.numel() for parameter in model.parameters())))
    return teachers


def teacher_parts(teachers: Sequence[Teacher], asked: Forward, corpus: Corpus, device: str) -> list[Part]:
    """Their weights, for good, and the widest forward of one of them, beside the graph that waits for its backward. They are asked
    one after another."""
    if not teachers:
        return []
    weights = BYTES * sum(teacher.parameters for teacher in teachers)
    forward = max(Encoder(teacher.sizes, BYTES, 0.0, device, False).scored(asked, corpus) for teacher in teachers)
    return [
        Part("weights of the teachers", weights, remedy="fewer distil.teachers"),
        Part("a teacher's forward", forward, at="backward", remedy=FEWER_PAIRS),
    ]


def teacher_flop(teachers: Sequence[Teacher], asked: Forward, corpus: Corpus) -> float:
    """Of a micro-batch."""
    return sum(asked.flop(corpus, teacher.sizes) for teacher in teachers)
