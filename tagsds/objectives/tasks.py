"""The tasks of pre-training (UNITER, arXiv 1909.11740, section 3.2): what each hides, and its loss.

Masks are conditional: a task hides words or regions, never both. Shapes: B = pairs, K = stream positions whose states are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.masking import choose_pieces, choose_regions, corrupt
from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.errors import UserError
from tagsds.losses.itm import itm, transport_distance, word_region_alignment
from tagsds.losses.masked import likeliest_class, region_cross_entropy, region_kl, region_mse, word_cross_entropy
from tagsds.models.uniter import Layout, UniterModel
from tagsds.negatives.random import draw_images
from tagsds.objectives.output import fraction
from tagsds.objectives.settings import PretrainConfig

Counters = dict[str, tuple[Tensor, Tensor]]


@dataclass
class Batch:
    """What the encoder reads of B pairs, and what was hidden from it.

    captions, images   int64 [B], numbers in the bank; `images` are another pair's where `is_true` is false
    texts, table       their word pieces and regions, with what a task hides
    is_true            bool [B]
    words              bool [all word pieces]: hidden
    """

    bank: Bank
    captions: Tensor
    images: Tensor
    texts: Ragged
    table: Images
    is_true: Tensor
    words: Tensor

    @staticmethod
    def of(bank: Bank, captions: Tensor) -> Batch:
        """The true pairs, nothing hidden."""
        texts, images = bank.text_table(captions), bank.image_of_caption[captions]
        nothing = torch.zeros_like(texts.values, dtype=torch.bool)
        return Batch(bank, captions, images, texts, bank.image_table(images), torch.ones_like(images, dtype=torch.bool), nothing)

    def pairs(self) -> Pairs:
        every = torch.arange(len(self.captions), device=self.bank.device)
        return Pairs(self.texts, self.table, every, every)


@dataclass
class TaskOutput:
    """`terms`: {name: (weight, float32 [])}. `counters` as in `StepOutput`."""

    terms: dict[str, tuple[float, Tensor]]
    counters: Counters = field(default_factory=dict)


class Task(Protocol):
    """One task. `head`: the module of the encoder that it trains; `needs_classes`: it reads the soft labels of the regions."""

    head: str
    needs_classes: bool

    def hide(self, batch: Batch, vocab: Vocabulary, random: torch.Generator) -> None:
        """Replace in `batch` what the task hides or exchanges."""
        ...

    def positions(self, batch: Batch, layout: Layout) -> Tensor | None:
        """Stream positions whose states the loss reads, int64 [K]; None for all."""
        ...

    def value(self, model: UniterModel, states: Tensor, layout: Layout, batch: Batch) -> TaskOutput: ...


class ImageTextMatching:
    """ITM: half of the pairs get another image; is the pair true? With WRA: optimal transport between words and regions."""

    head, needs_classes = "itm", False

    def __init__(self, config: PretrainConfig) -> None:
        self.wra_weight = config.wra_weight

    def hide(self, batch: Batch, vocab: Vocabulary, random: torch.Generator) -> None:
        own, bank = batch.images, batch.bank
        batch.is_true = torch.rand(len(own), generator=random, device=bank.device) < 0.5
        batch.images = torch.where(batch.is_true, own, draw_images(bank, own, 1, random)[:, 0])
        batch.table = bank.image_table(batch.images)

    def positions(self, batch: Batch, layout: Layout) -> Tensor | None:
        return None

    def value(self, model: UniterModel, states: Tensor, layout: Layout, batch: Batch) -> TaskOutput:
        logits = model.itm(model.pooler(states[layout.cls()]))
        found = TaskOutput({"itm": (1.0, itm(logits, batch.is_true))})
        found.counters["itm/accuracy"] = fraction((logits.argmax(dim=-1) == 1) == batch.is_true)
        if self.wra_weight:
            distance = word_region_distance(states, layout)
            found.terms["wra"] = (self.wra_weight, word_region_alignment(distance, batch.is_true))
        return found


def word_region_distance(states: Tensor, layout: Layout) -> Tensor:
    """Optimal-transport distance between word and region states of each pair, float32 [P]; [CLS] and [SEP] count as words."""
    every = torch.arange(len(layout.text_lengths), device=states.device)
    words = Ragged(states[layout.texts(every)], layout.text_lengths)
    regions = Ragged(states[layout.regions(every)], layout.image_lengths)

    def mask(rows: Ragged) -> Tensor:
        return torch.arange(int(rows.lengths.max()), device=states.device) < rows.lengths[:, None]

    return transport_distance(words.pad(0.0), mask(words), regions.pad(0.0), mask(regions))


class MaskedWords:
    """MLM: hidden word pieces from the others and the image."""

    head, needs_classes = "mlm", False

    def __init__(self, config: PretrainConfig) -> None:
        self.probability = config.mask_probability

    def hide(self, batch: Batch, vocab: Vocabulary, random: torch.Generator) -> None:
        padded = batch.texts.pad(vocab.pad)
        chosen = choose_pieces(batch.texts.lengths, padded.shape[1], random, self.probability)
        masked = corrupt(padded, chosen, vocab, random)
        batch.words = Ragged.from_padded(chosen, batch.texts.lengths).values
        batch.texts = Ragged.from_padded(masked, batch.texts.lengths)

    def positions(self, batch: Batch, layout: Layout) -> Tensor | None:
        every = torch.arange(len(layout.text_lengths), device=batch.words.device)
        return layout.texts(every)[batch.words]

    def value(self, model: UniterModel, states: Tensor, layout: Layout, batch: Batch) -> TaskOutput:
        target = batch.bank.text_table(batch.captions).values[batch.words]
        logits = model.mlm(states)
        accuracy = fraction(logits.argmax(dim=-1) == target)
        return TaskOutput({"mlm": (1.0, word_cross_entropy(logits, target))}, {"mlm/accuracy": accuracy})


class _MaskedRegions:
    """Hides the features of regions, whose states the loss reads."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config

    def hide(self, batch: Batch, vocab: Vocabulary, random: torch.Generator) -> None:
        batch.table.masked = choose_regions(batch.table.lengths, random, self.config.mask_probability)

    def positions(self, batch: Batch, layout: Layout) -> Tensor | None:
        every = torch.arange(len(layout.image_lengths), device=batch.images.device)
        return layout.regions(every)[batch.table.masked]

    def rows(self, batch: Batch) -> Tensor:
        """Where the hidden regions stand in the bank."""
        return batch.bank.region_rows(batch.images).values[batch.table.masked]

    def soft_labels(self, batch: Batch, task: str) -> Tensor:
        if batch.bank.classes is None:
            raise UserError(f"pretrain.mix asks for {task} but the shards carry no classes.npy; set its odds to 0.")
        return batch.bank.classes[self.rows(batch)]


class MaskedRegionFeatures(_MaskedRegions):
    """MRFR: hidden features by regression."""

    head, needs_classes = "region_feature", False

    def value(self, model: UniterModel, states: Tensor, layout: Layout, batch: Batch) -> TaskOutput:
        predicted = model.region_feature(states, model.image_embedding.feature.weight)
        return TaskOutput({"mrfr": (1.0, region_mse(predicted, batch.bank.regions.values[self.rows(batch)]))})


class MaskedRegionDistribution(_MaskedRegions):
    """MRC-KL: the detector's class distribution of hidden regions."""

    head, needs_classes = "region_class", True

    def value(self, model: UniterModel, states: Tensor, layout: Layout, batch: Batch) -> TaskOutput:
        soft, logits = self.soft_labels(batch, "mrckl"), model.region_class(states)
        return TaskOutput({"mrckl": (1.0, region_kl(logits, soft, self.config.kl_reduction))}, class_accuracy(logits, soft, batch))


class MaskedRegionClasses(_MaskedRegions):
    """MRC: the detector's likeliest class of hidden regions."""

    head, needs_classes = "region_class", True

    def value(self, model: UniterModel, states: Tensor, layout: Layout, batch: Batch) -> TaskOutput:
        soft, logits = self.soft_labels(batch, "mrc"), model.region_class(states)
        loss = region_cross_entropy(logits, soft, batch.bank.background_class)
        return TaskOutput({"mrc": (1.0, loss)}, class_accuracy(logits, soft, batch))


def class_accuracy(logits: Tensor, soft: Tensor, batch: Batch) -> Counters:
    target = likeliest_class(soft, batch.bank.background_class)
    return {"region_class/accuracy": fraction(logits.argmax(dim=-1) == target)}


TASKS: dict[str, Callable[[PretrainConfig], Task]] = {
    "itm": ImageTextMatching,
    "mlm": MaskedWords,
    "mrfr": MaskedRegionFeatures,
    "mrckl": MaskedRegionDistribution,
    "mrc": MaskedRegionClasses,
}
