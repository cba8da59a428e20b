"""Scores of true and edited captions with their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.errors import UserError
from tagsds.evaluators.metrics import pair_accuracy
from tagsds.evaluators.pairs_file import EditPair, EditSet
from tagsds.models.load import positions_of_model
from tagsds.ranks import World
from tagsds.scoring.scorer import PairScorer


def score_edits(
    scorer: PairScorer, bank: Bank, tokenizer: Any, pairs: Sequence[EditPair], world: World, progress: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Scores of the true and the false captions with their images, two [N]; None on all ranks but the first."""
    every = [text for pair in pairs for text in (pair.caption, pair.negative)]  # all ranks meet the same mistakes
    whole = tokenize_texts(tokenizer, every, positions_of_model(scorer.model.config))
    share = world.share(torch.arange(len(pairs)))
    mine = share.tolist()
    part = torch.empty(len(mine), 2, device=bank.device)
    if mine:
        table = whole.select(torch.stack([2 * share, 2 * share + 1], dim=1).flatten()).to(bank.device)
        images = torch.tensor([pairs[i].image for i in mine], device=bank.device)
        rows, image_of_row = torch.unique(images, return_inverse=True)
        text_of_pair = torch.arange(2 * len(mine), device=bank.device)
        packed = Pairs(table, bank.image_table(rows), text_of_pair, image_of_row.repeat_interleave(2))
        part = scorer(packed, progress=progress and world.first).view(-1, 2)
    both = world.gather(part, len(pairs))
    return (None, None) if both is None else (both[:, 0], both[:, 1])


def tokenize_texts(tokenizer: Any, texts: list[str], positions: int | None) -> Ragged:
    """Word pieces with [CLS] and [SEP], int64. UserError for a text longer than the model has positions (None: no limit)."""
    rows = tokenizer(texts)["input_ids"]
    longest = max(range(len(rows)), key=lambda row: len(rows[row]))
    if positions is not None and len(rows[longest]) > positions:
        raise UserError(
            f"the caption '{texts[longest][:60]}...' of --pairs has {len(rows[longest])} word pieces, the checkpoint's "
            f"max_position_embeddings is {positions}; shorten it or remove the pair."
        )
    return Ragged.from_rows([torch.tensor(row, dtype=torch.int64) for row in rows])


def accuracies(edits: Sequence[EditSet], scores: Sequence[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Any]]:
    """By kind of edit, from its true and false scores, two [N]."""
    return {
        kind.kind: {"accuracy": pair_accuracy(true, false), "pairs": len(kind.pairs), "skipped": kind.skipped}
        for kind, (true, false) in zip(edits, scores, strict=True)
    }
