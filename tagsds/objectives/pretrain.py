"""Pre-training: one task per optimiser step (UNITER, arXiv 1909.11740, section 3.2; method 2).

Every task runs the same forward and every head is called, with no rows where the task does not need it: each parameter
takes part in each backward, which ZeRO-3 requires.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from tagsds.data.bank import Bank
from tagsds.data.masking import choose_pieces, choose_regions, corrupt
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw, generator
from tagsds.errors import UserError, nearest
from tagsds.formats.candidates import Candidates
from tagsds.losses.masked import likeliest_class, region_cross_entropy, region_kl, region_mse, word_cross_entropy
from tagsds.losses.matching import itm, transport_distance, word_region_alignment
from tagsds.models.uniter import Layout, UniterModel
from tagsds.negatives.random import draw_images
from tagsds.objectives.output import StepOutput, fraction
from tagsds.scoring.scorer import Scorer
from tagsds.settings import one_of, share

TASKS = ("itm", "mlm", "mrfr", "mrckl", "mrc")


@dataclass
class PretrainConfig:
    """Tasks of pre-training: group `pretrain` of a recipe."""

    mix: dict[str, int] = field(default_factory=lambda: {"itm": 2, "mlm": 2, "mrfr": 1, "mrckl": 1, "mrc": 0})
    """one task per optimiser step, drawn with these odds"""
    mask_probability: float = 0.15
    """probability that a word piece, or a region, is masked"""
    wra_weight: float = 0.1
    """weight of the word-region alignment beside image-text matching"""
    kl_reduction: str = "mean"
    """of MRC-KL over the classes: mean (the released code, 1 / number of classes of the sum) or sum (the paper's text)"""

    def check(self, group: str) -> None:
        one_of(self, group, kl_reduction=("mean", "sum"))
        share(self, group, "mask_probability")
        for task, odds in self.mix.items():
            if odds < 0:
                raise UserError(f"{group}.mix.{task}={odds} must not be negative.")


class Settings(Protocol):
    """The groups of a run's settings that this objective reads."""

    pretrain: PretrainConfig


class PretrainObjective(nn.Module):
    """forward(bank, captions int64 [B], draw) -> StepOutput."""

    def __init__(self, model: UniterModel, config: Settings, vocab: Vocabulary, scorer: Scorer) -> None:
        super().__init__()
        self.model = model
        self.config = config.pretrain
        self.vocab = vocab
        for task in config.pretrain.mix:
            if task not in TASKS:
                raise UserError(f"pretrain.mix: unknown task '{task}': {nearest(task, TASKS)}")
        if (config.pretrain.mix.get("mrckl") or config.pretrain.mix.get("mrc")) and not model.config.num_region_classes:
            raise UserError("pretrain.mix asks for mrckl or mrc but the shards carry no classes.npy; set their odds to 0.")

    @staticmethod
    def heads(config: Settings) -> list[str]:
        """The heads this stage trains."""
        of_task = {"itm": "itm", "mlm": "mlm", "mrfr": "region_feature", "mrckl": "region_class", "mrc": "region_class"}
        return sorted({of_task[task] for task, odds in config.pretrain.mix.items() if odds and task in of_task})

    def task_at(self, draw: Draw) -> str:
        """The task of a step, the same on all ranks."""
        tasks = list(self.config.mix)
        odds = torch.tensor([float(self.config.mix[task]) for task in tasks])
        return tasks[int(torch.multinomial(odds, 1, generator=generator("cpu", draw.seed, draw.step, "task")))]

    def forward(self, bank: Bank, captions: Tensor, draw: Draw, candidates: Candidates | None = None) -> StepOutput:
        task = self.task_at(draw)
        random = draw.generator(bank.device, task)
        texts = bank.text_table(captions)
        own = images = bank.image_of_caption[captions]
        is_true = torch.ones_like(own, dtype=torch.bool)
        if task == "itm":
            is_true = torch.rand(len(own), generator=random, device=bank.device) < 0.5
            images = torch.where(is_true, own, draw_images(bank, own, 1, random)[:, 0])
        table = bank.image_table(images)
        chosen_words = torch.zeros_like(texts.values, dtype=torch.bool)
        if task == "mlm":
            padded = texts.pad(self.vocab.pad)
            chosen = choose_pieces(texts.lengths, padded.shape[1], random, self.config.mask_probability)
            masked = corrupt(padded, chosen, self.vocab, random)
            chosen_words = Ragged.from_padded(chosen, texts.lengths).values
            texts = Ragged.from_padded(masked, texts.lengths)
        if task in ("mrfr", "mrckl", "mrc"):
            table.masked = choose_regions(table.lengths, random, self.config.mask_probability)

        every = torch.arange(len(captions), device=bank.device)
        pairs = Pairs(texts, table, every, every)
        layout = Layout.of(pairs)
        states = self.model(pairs, None if task == "itm" else self._keep(layout, every, chosen_words, table.masked))
        terms, counters = self.losses(task, states, layout, bank, captions, images, is_true, chosen_words, table.masked)
        total = sum(weight * term for weight, term in terms.values())
        return StepOutput(total, {name: term for name, (_, term) in terms.items() if name != "idle"}, counters, {}, len(pairs))

    def _keep(self, layout: Layout, every: Tensor, words: Tensor, regions: Tensor | None) -> Tensor:
        if regions is not None:
            return layout.regions(every)[regions]
        row = torch.repeat_interleave(every, layout.text_lengths)
        column = torch.arange(len(words), device=every.device) - (layout.text_lengths.cumsum(0) - layout.text_lengths)[row]
        return (layout.starts[row] + column)[words]

    def losses(self, task, states, layout, bank, captions, images, is_true, chosen_words, masked):
        """{name: (weight, term)}; heads that are not asked for see no rows and add an exact zero."""
        model, none = self.model, states[:0]
        counters = {}
        empty = [model.itm(model.pooler(none)).sum(), model.mlm(none).sum()]
        weight = model.image_embedding.feature.weight
        empty += [model.region_feature(none, weight).sum(), model.region_class(none).sum()]
        terms: dict[str, tuple[float, Tensor]] = {"idle": (0.0, torch.stack([e.float() for e in empty]).sum())}
        if task == "itm":
            logits = model.itm(model.pooler(states[layout.cls()]))
            terms["itm"] = (1.0, itm(logits, is_true))
            counters["itm/accuracy"] = fraction((logits.argmax(dim=-1) == 1) == is_true)
            if self.config.wra_weight:
                distance = self.transport(states, layout)
                terms["wra"] = (self.config.wra_weight, word_region_alignment(distance, is_true))
        elif task == "mlm":
            target = bank.text_table(captions).values[chosen_words]
            logits = model.mlm(states)
            terms["mlm"] = (1.0, word_cross_entropy(logits, target))
            counters["mlm/accuracy"] = fraction(logits.argmax(dim=-1) == target)
        else:
            rows = bank.region_rows(images).values[masked]
            if task == "mrfr":
                terms["mrfr"] = (1.0, region_mse(model.region_feature(states, weight), bank.regions.values[rows]))
            elif bank.classes is None:
                raise UserError(f"pretrain.mix asks for {task} but the shards carry no classes.npy; set its odds to 0.")
            else:
                logits, soft = model.region_class(states), bank.classes[rows]
                if task == "mrckl":
                    terms[task] = (1.0, region_kl(logits, soft, self.config.kl_reduction))
                else:
                    terms[task] = (1.0, region_cross_entropy(logits, soft, bank.background_class))
                hit = logits.argmax(dim=-1) == likeliest_class(soft, bank.background_class)
                counters["region_class/accuracy"] = fraction(hit)
        return terms, counters

    def transport(self, states: Tensor, layout: Layout) -> Tensor:
        """Optimal-transport distance between word and region states of each pair, float32 [P]; [CLS] and [SEP] count as words."""
        every = torch.arange(len(layout.text_lengths), device=states.device)
        words = Ragged(states[layout.texts(every)], layout.text_lengths)
        regions = Ragged(states[layout.regions(every)], layout.image_lengths)

        def mask(rows: Ragged) -> Tensor:
            return torch.arange(int(rows.lengths.max()), device=states.device) < rows.lengths[:, None]

        return transport_distance(words.pad(0.0), mask(words), regions.pad(0.0), mask(regions))
