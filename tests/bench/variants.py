"""The TAGS-DC step that `run.py` times: the package's, the plain one, and the package's with one saving taken out."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.data.pairs import Pairs, select_images
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.uniter import Layout
from tagsds.negatives import writer
from tagsds.negatives.random import draw_captions, draw_images
from tagsds.objectives.retrieval import RetrievalObjective
from tagsds.scoring.scorer import Scorer
from tests.bench.padded_scorer import PaddedScorer
from tests.bench.plain_step import fused, plain_step, written_out
from tests.bench.rates import DTYPES


def vocabulary(size: int = 28996) -> Vocabulary:
    """BERT's places of the special pieces."""
    return Vocabulary(size=size, pad=0, unk=100, cls=101, sep=102, mask=103)


@dataclass(frozen=True)
class Shape:
    """Of a random corpus. `boxes`: fewest, mean and most regions of an image; `words`: fewest and most pieces of a caption without
    [CLS] and [SEP]; `width` of a feature; `classes` of soft labels (0: none); `vocab` of the pieces."""

    boxes: tuple[int, float, int] = (10, 36, 100)
    words: tuple[int, int] = (8, 20)
    width: int = 2048
    classes: int = 0
    vocab: Vocabulary = field(default_factory=vocabulary)


def corpus(images: int, shape: Shape = Shape(), seed: int = 0) -> Bank:
    """Five captions an image, random features. Words follow a power law, so that refills repeat as they do in practice."""
    rng = np.random.default_rng(seed)
    fewest, mean, most = shape.boxes
    regions = torch.from_numpy(rng.normal(mean, mean / 2, images).clip(fewest, most).astype(np.int64))
    pieces = torch.from_numpy(rng.integers(shape.words[0], shape.words[1] + 1, 5 * images))
    vocab = shape.vocab
    first = vocab.mask + 1  # the special pieces stand before it
    drawn = rng.zipf(1.3, int(pieces.sum())) % min(5000, vocab.size - first)
    words = torch.from_numpy((first + drawn).astype(np.int32))
    ends = torch.tensor([vocab.cls], dtype=torch.int32), torch.tensor([vocab.sep], dtype=torch.int32)
    rows = [torch.cat([ends[0], row, ends[1]]) for row in words.split(pieces.tolist())]
    tokens = Ragged.from_rows(rows)
    spans = [[(n, p) for n, p in enumerate(range(1, length + 1, 2))] for length in pieces.tolist()]  # every second word
    corners = torch.from_numpy(rng.random((int(regions.sum()), 2, 2)).astype(np.float32)).sort(dim=1).values
    random = torch.Generator().manual_seed(seed)
    feature = torch.cat([torch.randn(len(part), shape.width, generator=random).relu().half() for part in corners.split(1 << 14)])
    classes = torch.randn(len(feature), shape.classes, generator=random).softmax(1).half() if shape.classes else None
    return Bank(
        tokens=tokens,
        spans=Ragged.from_rows([torch.tensor(row, dtype=torch.int32) for row in spans]),
        image_of_caption=torch.arange(images).repeat_interleave(5),
        captions_of_image=Ragged(torch.arange(5 * images), torch.full((images,), 5)),
        regions=Ragged(feature, regions),
        boxes=corners.flatten(1),
        classes=classes,
    )


def bank_of(args: argparse.Namespace) -> Bank:
    return corpus(args.images, Shape(width=args.features, vocab=vocabulary(args.vocabulary)))


class Variants:
    """One step, and others that leave something out of it or do it another way; `savings` names those.

    `dtype` and `dropout` take the place of `args`' where they are given; `bank` saves making it again.
    """

    def __init__(
        self, args: argparse.Namespace, bank: Bank | None = None, dtype: str | None = None, dropout: float | None = None
    ) -> None:
        self.args, self.device = args, torch.device(args.device)
        config = RunConfig()
        config.batch.pairs = args.captions
        config.negatives.count, config.negatives.keep = args.count, args.keep
        config.synthetic.maskings, config.synthetic.refills = args.maskings, args.refills
        config.loss.syn, config.loss.mlm, config.loss.disc, config.loss.corr = 1e-4, 0.05, 5e-4, 5e-4
        self.config = config
        self.bank = bank_of(args).to(self.device) if bank is None else bank
        self.dtype = dtype or args.dtype
        p = args.dropout if dropout is None else dropout
        torch.manual_seed(0)
        self.vocab = vocabulary(args.vocabulary)
        sizes = UniterConfig(
            vocab_size=args.vocabulary, hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.heads,
            intermediate_size=4 * args.hidden, hidden_dropout_prob=p, attention_probs_dropout_prob=p,
            region_dim=self.bank.regions.values.shape[1],
        )  # fmt: skip
        self.model = UniterModel(sizes).to(self.device, DTYPES[self.dtype]).train()
        self.scorer = Scorer(self.model)
        self.objective = RetrievalObjective(self.model, config, self.vocab, self.scorer)
        random = torch.Generator().manual_seed(1)
        captions = torch.randperm(self.bank.num_captions, generator=random)
        self.captions = captions[: args.captions].to(self.device)
        self.draw = Draw(42, 0, 0)

    # --- the step and the plain step ---

    def ours(self) -> Tensor:
        return self.objective(self.bank, self.captions, self.draw).total

    def plain(self) -> Tensor:
        return plain_step(self.model, self.bank, self.captions, self.draw, self.config, self.vocab, fused)[0]

    def written_out(self) -> Tensor:
        return plain_step(self.model, self.bank, self.captions, self.draw, self.config, self.vocab, written_out)[0]

    # --- one saving taken out; the numbers are those of design.md, "Speed" ---

    @contextmanager
    def padded(self) -> Iterator[None]:
        """1. Scoring with padded linear layers, pairs in the order they come."""
        with patch.object(self.objective, "scorer", PaddedScorer(self.model)):
            yield

    @contextmanager
    def own_rows(self) -> Iterator[None]:
        """2. Each pair embeds its own copy of its text and image."""
        forward = type(self.model).forward

        def repeated(pairs: Pairs, keep: Tensor | None = None, table: Any = None, extent: Any = None) -> Tensor:
            every = torch.arange(len(pairs), device=self.device)
            texts, images = pairs.texts.select(pairs.text_of_pair), select_images(pairs.images, pairs.image_of_pair)
            return forward(self.model, Pairs(texts, images, every, every), keep)

        with patch.object(self.model, "forward", repeated):
            yield

    @contextmanager
    def score_dropped(self) -> Iterator[None]:
        """3. Repeated and filtered sentences are scored, then dropped."""
        score = writer.score_sentences

        def all_of_them(scorer, bank, ids, lengths, images):
            written = self.args.captions * self.args.maskings * self.args.refills
            index = torch.arange(written, device=ids.device) % len(ids)  # as many as were written
            return score(scorer, bank, ids[index], lengths[index], images[index])[: len(ids)]

        with patch.object(writer, "score_sentences", all_of_them):
            yield

    @contextmanager
    def vocabulary_everywhere(self) -> Iterator[None]:
        """4. Vocabulary logits at every word."""
        maskings = writer.mask_captions(
            self.bank, self.captions, self.config.synthetic, self.vocab, self.draw.generator(self.device, "mask")
        )
        words = int(maskings.lengths.sum()) * self.args.maskings
        times = max(1, round(words / int(maskings.chosen.sum())) - 1)

        def repeating(head):
            forward = type(head).forward
            return lambda x: forward(head, x) + 0.0 * forward(head, x.repeat(times, 1)).sum()

        with ExitStack() as stack:
            for head in (self.model.mlm, self.model.correct):
                stack.enter_context(patch.object(head, "forward", repeating(head)))
            yield

    @contextmanager
    def full_last_layer(self) -> Iterator[None]:
        """5. Last layer at every position."""
        forward = type(self.model).forward

        def whole(pairs: Pairs, keep: Tensor | None = None, table: Any = None, extent: Any = None) -> Tensor:
            states = forward(self.model, pairs, None, table)
            return states if keep is None else states[keep]

        with patch.object(self.model, "forward", whole):
            yield

    @contextmanager
    def true_pair_thrice(self) -> Iterator[None]:
        """6. The true pair forwarded for t2i, i2t and syn."""
        forward = type(self.model).forward

        def thrice(pairs: Pairs, keep: Tensor | None = None, table: Any = None, extent: Any = None) -> Tensor:
            if not torch.is_grad_enabled():
                return forward(self.model, pairs, keep, table, extent)
            index = torch.cat([torch.arange(len(pairs)), torch.arange(len(self.captions)).repeat(2)]).to(self.device)
            more = pairs.subset(index)
            extra = Layout.of(more).cls()[len(pairs) :]
            return forward(self.model, more, torch.cat([keep, extra]))[: len(keep)]

        with patch.object(self.model, "forward", thrice):
            yield

    def read_from_disk(self, folder: Path) -> Callable[[], Tensor]:
        """7. The features of the random images read from a file each (the files are in the page cache)."""

        def step() -> Tensor:
            if not any(folder.iterdir()):  # in the first run, which warms up
                for image in range(self.bank.num_images):
                    np.save(folder / f"{image}.npy", self.bank.regions[image].cpu().numpy())
            own = self.bank.image_of_caption[self.captions]
            for row in draw_images(self.bank, own, self.args.count, self.draw.generator(self.device, "read")).tolist():
                for image in row:
                    torch.from_numpy(np.load(folder / f"{image}.npy").astype(np.float32)).to(self.device)
            return self.ours()

        return step

    def one_caption_a_time(self) -> Tensor:
        """8. Every caption on its own."""
        return torch.stack([self.objective(self.bank, c, self.draw).total for c in self.captions.split(1)]).mean()

    def within(self, context: Callable[[], Any]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            with context():
                return self.ours()

        return step

    # --- options that change the arithmetic ---

    def bf16_mining(self) -> Tensor:
        with patch.object(self.scorer, "dtype", torch.bfloat16):
            return self.ours()

    def shared_negatives(self) -> Tensor:
        with patch.object(self.config.negatives, "shared", True):
            return self.ours()

    def savings(self, folder: Path) -> dict[str, Callable[[], Tensor]]:
        """The step without each of them; `folder` receives the files that one of them reads."""
        return {
            "without 1: scoring padded": self.within(self.padded),
            "without 2: tables embedded for each pair": self.within(self.own_rows),
            "without 3: dropped sentences scored": self.within(self.score_dropped),
            "without 4: vocabulary at every word": self.within(self.vocabulary_everywhere),
            "without 5: last layer at every position": self.within(self.full_last_layer),
            "without 6: true pair three times": self.within(self.true_pair_thrice),
            "without 7: features read from files": self.read_from_disk(folder),
            "without 8: one caption at a time": self.one_caption_a_time,
        }

    # --- the scorer ---

    def mined_pairs(self) -> Pairs:
        """The pairs that random mining of the step scores, both directions."""
        own = self.bank.image_of_caption[self.captions]
        images = draw_images(self.bank, own, self.args.count, self.draw.generator(self.device, "negative images"))
        others = draw_captions(self.bank, own, self.args.count, self.draw.generator(self.device, "negative captions"))
        builder = PairBuilder(self.bank)
        builder.pairs(builder.captions(self.captions)[:, None].expand_as(images), images)
        builder.pairs(builder.captions(others), own[:, None].expand_as(others))
        return builder.build()
