"""What a trained encoder does with one caption, and the lengths of some pairs: recorded once, so that the figures can be drawn
without a model.

`docs/pictures/example.json` is such a record.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.api import Retriever
from tagsds.data.masking import ordinary_pieces
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.data.words import Spelling
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.files import read_json_object, write_json
from tagsds.models.uniter import Layout
from tagsds.negatives.sentences import Negatives, Rules, Sentence, SentenceWriter
from tagsds.negatives.writer import Maskings, SyntheticConfig, mask_captions
from tagsds.reporting.pictures import find_pictures
from tagsds.scoring.scorer import without_dropout

PAIRS = 8  # whose lengths are recorded
GUESSES = 4  # likeliest words of a gap
FILTERS_SHOWN = ("annotated", "repeated", "true_of_image")
MOST_TRIED = 100  # images that are looked at for an example


@dataclass(frozen=True)
class Example:
    """A caption and what was written from it.

    picture    PNG, base64
    words      of the caption
    gap        number of the word that the masking hides which the hardest sentence comes from
    guesses    the likeliest words for it and their probabilities at temperature tau
    tau        temperature
    written    number of candidates of all maskings
    dropped    {filter: [how many it dropped, one of them]}
    true       s(I, T) of the caption
    kept       the sentences left and their s(I, T~), the hardest first
    read       words of the hardest sentence: [word, probability that it was replaced, suggestion, its probability]
    pairs      word pieces ([CLS] and [SEP] among them) and regions of some pairs
    """

    picture: str
    words: list[str]
    gap: int
    guesses: list[list[Any]]
    tau: float
    written: int
    dropped: dict[str, list[Any]]
    true: float
    kept: list[list[Any]]
    read: list[list[Any]]
    pairs: list[list[int]]

    @staticmethod
    def load(path: Path) -> Example:
        try:
            return Example(**read_json_object(path))
        except TypeError as error:
            what = f"{path} is no record of an example ({error})"
            raise UserError(f"{what}; record it again with --checkpoint and --data.") from error

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


def record(retriever: Retriever, data: Path, config: SyntheticConfig | None = None) -> Example:
    """The first image of the corpus whose shortest caption shows everything: in its hardest negative one word is replaced, the
    encoder suspects that word most, and would mend it. UserError where none does; train longer."""
    config = config or SyntheticConfig()
    retriever.write_negatives(retriever.keys[0], retriever.captions(retriever.keys[0])[0], 1)  # a checkpoint that cannot, says so
    for row, key in enumerate(list(retriever.keys)[:MOST_TRIED]):
        bank = retriever.gallery.bank
        assert bank is not None
        numbers = bank.captions_of_image.select(torch.tensor([row], device=bank.device)).values
        caption = numbers[bank.tokens.lengths[numbers].argmin()][None]
        written, maskings = write(retriever, caption, config)
        if not written or len(written[0].changes) != 1 or not all(written.dropped[name] for name in FILTERS_SHOWN):
            continue
        change, read = written[0].changes[0], retriever.proofread(key, written[0].text)
        suspect = max(read, key=lambda word: word.suspicion)
        found = masking_of(maskings, Spelling.of(retriever.tokenizer, written.caption), change.start)
        if found is not None and (suspect.text, suspect.suggestion) == (change.new, change.old):
            gap, number = found
            return Example(
                picture=base64.b64encode(find_pictures(data, [key])[key]).decode(),
                words=written.caption.split(),
                gap=gap,
                guesses=guesses(retriever, caption, maskings, number, config.tau),
                tau=config.tau,
                written=written.written,
                dropped={name: [len(written.dropped[name]), written.dropped[name][0]] for name in FILTERS_SHOWN},
                true=round(written.score, 4),
                kept=[[negative.text, round(negative.score, 4)] for negative in written],
                read=[[word.text, round(word.suspicion, 4), word.suggestion, round(word.certainty or 0, 4)] for word in read],
                pairs=lengths_of_pairs(retriever),
            )
    raise UserError(f"none of {MOST_TRIED} images gives an example with one word that is replaced, found and mended; train longer.")


def write(retriever: Retriever, caption: Tensor, config: SyntheticConfig) -> tuple[Negatives, Maskings]:
    """All negatives of one caption of the corpus (int64 [1]) and the maskings they come from."""
    bank, draw = retriever.gallery.bank, Draw(0, 0, 0)
    assert bank is not None
    sentence = Sentence.of(Spelling.of(retriever.tokenizer, bank.texts[int(caption)]), bank.spans.select(caption).values, ())
    writer = SentenceWriter(retriever.model, retriever.scorer, retriever.tokenizer, config, Rules(without=("spelling",)))  # type: ignore[arg-type]
    maskings = mask_captions(bank, caption, config, writer.vocab, draw.generator(bank.device, "mask"))  # as the writer draws them
    return writer.write(bank, caption, [sentence], config.maskings * config.refills, draw)[0], maskings


def masking_of(maskings: Maskings, spelling: Spelling, start: int) -> tuple[int, int] | None:
    """The word at character `start` and the first masking that hides it and nothing else, as numbers; None where none does, or the
    word is no single piece."""
    word = next(number for number, word in enumerate(spelling.words()) if spelling.chars(word)[0] == start)
    if len(spelling.words()[word]) > 1 or len(spelling.words()) != len(spelling.text.split()):
        return None
    position = spelling.words()[word][0] + 1
    for number, chosen in enumerate(maskings.chosen[0]):
        if chosen.nonzero().flatten().tolist() == [position]:
            return word, number
    return None


@torch.no_grad()
def guesses(retriever: Retriever, caption: Tensor, maskings: Maskings, number: int, tau: float) -> list[list[Any]]:
    """The likeliest words of the one gap of a masking, and their probabilities at temperature tau: [[word, probability], ...]."""
    bank, vocab = retriever.gallery.bank, Vocabulary.of(retriever.tokenizer)
    assert bank is not None
    ids = torch.where(maskings.chosen[0, number], vocab.mask, maskings.ids[0])[: int(maskings.lengths[0])]
    zero = torch.zeros(1, dtype=torch.int64, device=bank.device)
    pairs = Pairs(Ragged.from_rows([ids]), bank.image_table(bank.image_of_caption[caption]), zero, zero)
    with without_dropout(retriever.model):
        logits = retriever.model.mlm(retriever.model(pairs, maskings.chosen[0, number].nonzero().flatten()))
    allowed = ordinary_pieces(vocab, logits.device)
    best = (logits[0, allowed].float() / tau).softmax(dim=-1).topk(GUESSES)
    words = retriever.tokenizer.convert_ids_to_tokens(allowed[best.indices].tolist())
    return [[word, round(value, 4)] for word, value in zip(words, best.values.tolist(), strict=True)]


def lengths_of_pairs(retriever: Retriever) -> list[list[int]]:
    """Word pieces ([CLS] and [SEP] among them) and regions of PAIRS true pairs, in the order of the corpus. Among all pairs, sorted
    by length, they are evenly spaced from the shortest to the longest."""
    bank = retriever.gallery.bank
    assert bank is not None
    captions = torch.arange(bank.num_captions, device=bank.device)
    layout = Layout.of(Pairs(bank.text_table(captions), bank.image_table(bank.image_of_caption), captions, captions))
    lengths = torch.stack([layout.text_lengths, layout.image_lengths], dim=1)
    at = torch.linspace(0, len(lengths) - 1, PAIRS).long()
    chosen = lengths.sum(dim=1).argsort(stable=True)[at]
    return lengths[chosen.sort().values].tolist()
