"""What the encoder's discrimination and correction heads say of a sentence: which words are wrong, and what they should be
(TAGS-DC, arXiv 2111.03349).

Shapes: H = hidden width, n = word pieces, [CLS] and [SEP] not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.words import Spelling, join_pieces
from tagsds.errors import UserError
from tagsds.models.uniter import Layout, UniterModel
from tagsds.scoring.scorer import without_dropout


@dataclass(frozen=True)
class Word:
    """A word of a sentence that was proofread.

    text          as it stands in the sentence, the characters [start, end)
    suspicion     probability that it was replaced, 0..1: the highest of its pieces
    suggestion    what it should be; it may be the word itself. None where no stage has trained the correction head
    certainty     probability of the suggestion, 0..1: the product over its pieces. None without a suggestion
    """

    text: str
    start: int
    end: int
    suspicion: float
    suggestion: str | None
    certainty: float | None


@dataclass
class Reading:
    """Of n pieces: `suspicion` float32 [n], `correction` int64 [n] likeliest pieces, `certainty` float32 [n] their
    probabilities."""

    suspicion: Tensor
    correction: Tensor
    certainty: Tensor


def read_words(model: UniterModel, states: Tensor) -> Reading:
    """Both heads on the states of word pieces, [n, H]."""
    suspicion = torch.softmax(model.discriminate(states).float(), dim=-1)[:, 0]  # column 0 = it was replaced
    logits = model.correct(states).float()
    highest, correction = logits.max(dim=-1)
    return Reading(suspicion, correction, torch.exp(highest - logits.logsumexp(dim=-1)))


def check_proofreads(model: Any, folder: object) -> None:
    """UserError where no stage has trained the discrimination head."""
    trained = model.config.trained_heads
    if "discriminate" not in trained:
        raise UserError(
            f"{folder} has no trained discrimination head (trained_heads: {', '.join(trained) or 'none'}), so it cannot tell wrong "
            "words; train it with a TAGS-DC recipe (loss.disc above zero)."
        )


@torch.no_grad()
def proofread(
    model: UniterModel, tokenizer: Any, sentences: Sequence[Spelling], images: Images, image_of_sentence: Tensor
) -> list[list[Word]]:
    """The words of each sentence, held against an image each (int64 [S], rows of the table `images`)."""
    ends = tokenizer.cls_token_id, tokenizer.sep_token_id
    device = image_of_sentence.device
    rows = [torch.tensor([ends[0], *sentence.ids, ends[1]], dtype=torch.int64) for sentence in sentences]
    number = torch.arange(len(rows), device=device)
    pairs = Pairs(Ragged.from_rows(rows).to(device), images, number, image_of_sentence)
    layout = Layout.of(pairs)
    with without_dropout(model):
        reading = read_words(model, model(pairs, layout.words(number)))
    corrects = "correct" in model.config.trained_heads
    suspicion, certainty = reading.suspicion.tolist(), reading.certainty.tolist()
    corrections = tokenizer.convert_ids_to_tokens(reading.correction.tolist())
    found, at = [], 0
    for sentence in sentences:
        pieces = [
            {
                "text": piece, "replaced": False, "suspicion": suspicion[at + n], "certainty": certainty[at + n],
                "correction": corrections[at + n],
            }
            for n, piece in enumerate(sentence.pieces)
        ]  # fmt: skip
        at += len(pieces)
        words = []
        for positions, joined in zip(sentence.words(), join_pieces(pieces), strict=True):
            start, end = sentence.chars(positions)
            correction = joined["correction"].removeprefix("##") if corrects else None
            sure = joined["certainty"] if corrects else None
            words.append(Word(sentence.text[start:end], start, end, joined["suspicion"], correction, sure))
        found.append(words)
    return found
