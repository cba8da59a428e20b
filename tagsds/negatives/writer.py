"""The encoder writes hard negative sentences: mask, refill, filter, score, keep the hardest (TAGS, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.data.masking import choose_by_structure, corrupt, ordinary_pieces, span_members
from tagsds.data.ragged import Ragged, positions_of
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.kernels import choice
from tagsds.losses.ranking import hardest
from tagsds.models.uniter import Layout, UniterModel
from tagsds.negatives.tailored import filter_candidates, refill, write
from tagsds.scoring.scorer import Scorer, without_dropout
from tagsds.settings import above_zero, one_of, probability

WRITERS = ("live", "frozen", "words")


@dataclass
class SyntheticConfig:
    """How sentences are written: group `synthetic` of a recipe."""

    maskings: int = 20
    """masked copies of a caption"""
    refills: int = 20
    """sentences that are drawn from each masked copy"""
    tau: float = 1.5
    """temperature of the refilling softmax"""
    mask_probability: float = 0.15
    """probability that a phrase or word piece is masked"""
    writer: str = "live"
    """who refills: live, the encoder as it is now; frozen, as it was when the stage began; words, nobody: pieces of the training
    captions' phrases by their frequency. The last two are ablations"""
    drop_true: bool = True
    """drop a sentence whose changed words all stand in captions of its image, as it is probably true of it; false: an ablation"""

    def check(self, group: str) -> None:
        one_of(self, group, writer=WRITERS)
        above_zero(self, group, "maskings", "refills", "tau")
        probability(self, group, "mask_probability")


@dataclass
class Maskings:
    """B captions, each masked M times. `ids` int64 [B, L] and `masked` int64 [B, M, L] padded, `chosen` bool [B, M, L]."""

    ids: Tensor
    lengths: Tensor
    masked: Tensor
    chosen: Tensor

    def table(self) -> Ragged:
        """The masked captions as text rows, B * M of them, caption by caption."""
        return Ragged.from_padded(self.masked.flatten(0, 1), self.lengths.repeat_interleave(self.masked.shape[1]))

    def hidden(self, layout: Layout, first_pair: int) -> Tensor:
        """Stream positions of the chosen pieces, in the order of `chosen.nonzero()`; the B * M pairs begin at `first_pair`."""
        row, column = self.chosen.flatten(0, 1).nonzero(as_tuple=True)
        return layout.starts[first_pair + row] + column

    def originals(self) -> Tensor:
        """The pieces that were there, in the same order."""
        return self.ids[:, None, :].expand_as(self.chosen)[self.chosen]


@dataclass
class Written:
    """The sentences that are left: `ids` int64 [n, L] padded, `caption` int64 [n] in 0..B-1, `masked` bool [n, L] positions
    that had been masked. `score` float32 [n] ranking logit. `counts`: candidates left after each filter."""

    ids: Tensor
    caption: Tensor
    masked: Tensor
    score: Tensor
    counts: dict[str, Tensor]

    def hardest(self, captions: int, keep: int) -> Written:
        """The `keep` of highest score of each caption, fewer where fewer are left; by caption, hardest first."""
        order = torch.argsort(self.caption, stable=True)
        per_caption = torch.bincount(self.caption, minlength=captions)
        slots = Ragged(order, per_caption).pad(0)  # [captions, most]
        if slots.shape[1] == 0:
            return self
        column = torch.arange(slots.shape[1], device=slots.device)
        at, valid = hardest(self.score[slots], keep, column < per_caption[:, None])
        rows = slots.gather(1, at)[valid]
        return Written(self.ids[rows], self.caption[rows], self.masked[rows], self.score[rows], self.counts)


def mask_captions(
    bank: Bank, captions: Tensor, config: SyntheticConfig, vocab: Vocabulary, generator: torch.Generator
) -> Maskings:
    """`config.maskings` maskings of each caption (int64 [B]) along its spans."""
    table = bank.text_table(captions)
    ids = table.pad(vocab.pad)
    members = span_members(bank.spans.select(captions), ids.shape[1])
    chosen = choose_by_structure(members, table.lengths, config.maskings, generator, config.mask_probability)
    masked = corrupt(ids[:, None, :].expand_as(chosen), chosen, vocab, generator)
    return Maskings(ids, table.lengths, masked, chosen)


@torch.no_grad()
def write_negatives(
    model: UniterModel,
    scorer: Scorer,
    bank: Bank,
    captions: Tensor,
    maskings: Maskings,
    config: SyntheticConfig,
    vocab: Vocabulary,
    draw: Draw,
) -> Written:
    """Refill every masking with its image in view, drop what is annotated, repeated or probably true, score the rest."""
    images = bank.image_of_caption[captions]
    candidates = write_candidates(model, bank, captions, maskings, config, vocab, draw)
    filtered = filter_candidates(candidates, maskings.ids, annotated(bank, images, vocab), vocab, config.drop_true)
    caption, candidate = filtered.keep.nonzero(as_tuple=True)
    ids = candidates[caption, candidate]
    masked = maskings.chosen[caption, torch.div(candidate, config.refills, rounding_mode="floor")]
    score = score_sentences(scorer, bank, ids, maskings.lengths[caption], images[caption])
    return Written(ids, caption, masked, score, filtered.counts)


@torch.no_grad()
def write_candidates(
    model: UniterModel,
    bank: Bank,
    captions: Tensor,
    maskings: Maskings,
    config: SyntheticConfig,
    vocab: Vocabulary,
    draw: Draw,
) -> Tensor:
    """Every masking refilled with its image in view, nothing dropped yet: int64 [B, M * R, L]. `model` fills nothing where
    `config.writer` is words."""
    if config.writer == "words":
        return write(maskings.ids, maskings.chosen, phrase_pieces(bank, captions, maskings, config.refills, draw))
    images = bank.image_of_caption[captions]
    per_caption = maskings.masked.shape[1]
    builder = PairBuilder(bank)
    builder.pairs(builder.texts(maskings.table()), images.repeat_interleave(per_caption))
    pairs = builder.build()
    with without_dropout(model):
        states = model(pairs, maskings.hidden(Layout.of(pairs), 0))
        pieces = refill_states(model, states, vocab, config, draw)
    return write(maskings.ids, maskings.chosen, pieces)


@dataclass
class Phrases:
    """Of the entries of a bank's span table: `begins` bool [n], whether a piece is the first of its phrase. `stock`: those
    pieces, and the others, int64."""

    begins: Tensor
    stock: tuple[Tensor, Tensor]

    @staticmethod
    def of(bank: Bank) -> Phrases:
        """Made once for a table: a micro-batch's bank shares it with the whole. UserError for a corpus without a span."""
        table = bank.spans.values
        if table not in _phrases:
            if not len(table):
                raise UserError("synthetic.writer=words draws from the phrases of the captions, and this corpus has none.")
            owner = torch.repeat_interleave(torch.arange(bank.num_captions, device=bank.device), bank.spans.lengths)
            number, position = table.unbind(1)
            begins = torch.ones_like(number, dtype=torch.bool)
            begins[1:] = (number[1:] != number[:-1]) | (owner[1:] != owner[:-1])
            pieces = bank.tokens.values[bank.tokens.offsets[owner] + position].long()
            within = pieces[~begins] if not bool(begins.all()) else pieces
            _phrases[table] = Phrases(begins, (pieces[begins], within))
        return _phrases[table]


_phrases = WeakTensorKeyDictionary()


def phrase_pieces(bank: Bank, captions: Tensor, maskings: Maskings, refills: int, draw: Draw) -> Tensor:
    """Pieces for the masked positions without a model, int64 [n, R]: a piece that begins a phrase becomes one that begins a phrase
    of the bank, any other one that stands within a phrase, by their frequency there."""
    phrases = Phrases.of(bank)
    members = bank.spans.select(captions)
    rows = torch.repeat_interleave(torch.arange(len(captions), device=bank.device), members.lengths)
    first = torch.zeros_like(maskings.ids, dtype=torch.bool)
    at = phrases.begins[positions_of(bank.spans.offsets[captions], members.lengths)]
    first[rows[at], members.values[:, 1][at].long()] = True
    wanted = first[:, None, :].expand_as(maskings.chosen)[maskings.chosen]
    generator = draw.generator(bank.device, "refill")
    first_ones, later_ones = (
        stock[torch.randint(len(stock), (len(wanted), refills), generator=generator, device=bank.device)] for stock in phrases.stock
    )
    return torch.where(wanted[:, None], first_ones, later_ones)


def refill_states(model: UniterModel, states: Tensor, vocab: Vocabulary, config: SyntheticConfig, draw: Draw) -> Tensor:
    """Pieces for masked positions from their states [n, H], int64 [n, R]: by a kernel without a table of logits where there is one
    and the decoder's weight is whole on this rank."""
    decoder = model.mlm.decoder
    if choice.sample(states.device) == "reference" or hasattr(decoder.weight, "ds_id"):
        return refill(model.mlm(states), vocab, config.tau, config.refills, draw.generator(states.device, "refill"))
    from tagsds.kernels.triton.sample import sample_pieces

    allowed = torch.zeros(vocab.size, dtype=torch.bool, device=states.device)
    allowed[ordinary_pieces(vocab, states.device)] = True
    seed = int(torch.randint(1 << 31, (), generator=draw.generator("cpu", "refill")))
    states = model.mlm.transform(states)
    return sample_pieces(states, decoder.weight, decoder.bias, allowed, config.tau, config.refills, seed)


def annotated(bank: Bank, images: Tensor, vocab: Vocabulary) -> Tensor:
    """The captions of each image (int64 [B]), padded: int64 [B, A, L]."""
    own = bank.captions_of_image.select(images)
    sentences = bank.text_table(own.values).pad(vocab.pad)
    out = sentences.new_full((len(images), int(own.lengths.max()), sentences.shape[1]), vocab.pad)
    out[torch.arange(out.shape[1], device=out.device) < own.lengths[:, None]] = sentences
    return out


def score_sentences(scorer: Scorer, bank: Bank, ids: Tensor, lengths: Tensor, images: Tensor) -> Tensor:
    """Ranking logits of sentences (padded [n, L]) with an image each. With none left, one true pair is scored and dropped,
    so that all ranks make the same calls."""
    builder = PairBuilder(bank)
    if len(ids):
        builder.pairs(builder.texts(Ragged.from_padded(ids, lengths)), images)
        return scorer(builder.build())
    first = torch.zeros(1, dtype=torch.int64, device=bank.device)
    builder.pairs(builder.captions(first), bank.image_of_caption[first])
    return scorer(builder.build())[:0]
