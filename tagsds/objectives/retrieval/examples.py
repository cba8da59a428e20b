"""Written negatives for people to read: which words were replaced, which the encoder suspects, how it would mend them."""

from __future__ import annotations

from typing import Any

import torch

from tagsds.data.builder import PairBuilder
from tagsds.data.ragged import Ragged
from tagsds.data.words import join_pieces
from tagsds.models.uniter import Layout
from tagsds.objectives.retrieval.draws import Draws
from tagsds.objectives.retrieval.settings import Settings
from tagsds.scoring.proofread import read_words
from tagsds.scoring.scorer import without_dropout


@torch.no_grad()
def written_examples(draws: Draws, config: Settings, tokenizer: Any, most: int = 5) -> list[dict[str, Any]]:
    """The `most` hardest sentences written for each caption of `draws`, word by word; scores are s(I, T) in 0..1. A collective
    under ZeRO-3: all ranks call it with the same captions."""
    bank, captions, images, maskings = draws.bank, draws.captions, draws.images, draws.maskings
    model = draws.negatives.model
    written = draws.everything_written.hardest(len(captions), most)
    builder = PairBuilder(bank)
    true = builder.pairs(builder.captions(captions), images)
    if len(written.ids):
        sentences = Ragged.from_padded(written.ids, maskings.lengths[written.caption])
        builder.pairs(builder.texts(sentences), images[written.caption])
    pairs = builder.build()
    layout = Layout.of(pairs)
    number = torch.arange(len(pairs), device=bank.device)
    with without_dropout(model):
        states = model(pairs)
        score = torch.sigmoid(model.score(states[layout.cls()]))
        reading = read_words(model, states[layout.words(number[true.stop :])])
    suspicion, corrected = reading.suspicion.tolist(), reading.correction.tolist()

    examples: list[dict[str, Any]] = [
        {
            "image": bank.keys[int(images[b])],
            "caption": bank.texts[int(captions[b])],
            "score": float(score[true][b]),
            "written": [],
        }
        for b in range(len(captions))
    ]
    at = 0
    for n, owner in enumerate(written.caption.tolist()):
        row = []
        for position in range(1, int(maskings.lengths[owner]) - 1):
            piece = int(written.ids[n, position])
            replaced = piece != int(maskings.ids[owner, position])
            fix = tokenizer.convert_ids_to_tokens(corrected[at]) if config.loss.corr else None
            suspect = suspicion[at] if config.loss.disc else None
            text = tokenizer.convert_ids_to_tokens(piece)
            row.append({"text": text, "replaced": replaced, "suspicion": suspect, "correction": fix})
            at += 1
        examples[owner]["written"].append({"score": float(score[true.stop + n]), "words": join_pieces(row)})
    return examples


def as_markdown(examples: list[dict[str, Any]]) -> str:
    """A table for TensorBoard's text panel: replaced words in bold, the correction of suspected ones (> 0.5) in brackets."""
    lines = ["| s(I, T) | sentence |", "|---|---|"]
    for example in examples:
        lines.append(f"| {example['score']:.3f} | **{example['image']}**: {example['caption']} |")
        for sentence in example["written"]:
            text = []
            for word in sentence["words"]:
                shown = f"**{word['text']}**" if word["replaced"] else word["text"]
                if word["suspicion"] is not None and word["suspicion"] > 0.5:
                    mend = f" → {word['correction']}" if word["correction"] else ""
                    shown += f" [{word['suspicion']:.2f}{mend}]"
                text.append(shown)
            lines.append(f"| {sentence['score']:.3f} | {' '.join(text)} |")
    return "\n".join(lines)
