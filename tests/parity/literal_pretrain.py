"""UNITER's five pre-training tasks as the released runs compute them, one pair per forward (arXiv 1909.11740, section 3).

What is drawn (task, true or false pairs, hidden pieces and regions) comes from the package's drawing functions; every value is
computed here. A term is the mean over all pairs (ITM, WRA), hidden pieces (MLM) or hidden regions (the others) of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.config import PretrainConfig
from tagsds.data.bank import Bank
from tagsds.data.masking import choose_pieces, choose_regions, corrupt
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw, generator
from tagsds.negatives.random import draw_images
from tests.parity import literal_encoder as uniter
from tests.parity.literal_encoder import Weights
from tests.parity.literal_optimiser import Terms

HEADS = {"itm": "itm", "mlm": "mlm", "mrfr": "region_feature", "mrckl": "region_class", "mrc": "region_class"}


def task_of(config: PretrainConfig, seed: int, step: int) -> str:
    odds = torch.tensor([float(weight) for weight in config.mix.values()])
    return list(config.mix)[int(torch.multinomial(odds, 1, generator=generator("cpu", seed, step, "task")))]


def mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def micro_batch(
    w: Weights, bank: Bank, captions: list[int], config: PretrainConfig, vocab: Vocabulary, draw: Draw, heads: int
) -> Terms:
    task = task_of(config, draw.seed, draw.step)
    random = draw.generator("cpu", task)
    texts = [uniter.caption(bank, number) for number in captions]
    images = [int(bank.image_of_caption[number]) for number in captions]
    if task == "itm":
        return matching(w, bank, texts, images, config, random, heads)
    if task == "mlm":
        return words(w, bank, texts, images, config, vocab, random, heads)
    return regions(w, bank, texts, images, config, task, random, heads)


def matching(w: Weights, bank: Bank, texts: list[Tensor], images: list[int], config: PretrainConfig, random, heads: int) -> Terms:
    """ITM on the pooled state, column 1 = true; WRA between all word states, [CLS] and [SEP] too, and all region states."""
    is_true = (torch.rand(len(texts), generator=random) < 0.5).tolist()
    others = draw_images(bank, torch.tensor(images), 1, random)[:, 0].tolist()
    itm, wra = [], []
    for text, own, other, true in zip(texts, images, others, is_true):
        x = uniter.states(w, uniter.pair_of(bank, text, own if true else other), heads)
        itm.append(-uniter.log_softmax(uniter.linear(w, "itm", uniter.pooled(w, x)))[int(true)])
        distance = transport_distance(x[: len(text)], x[len(text) :])
        wra.append(distance if true else -distance)
    return {"itm": mean(itm), "wra": mean(wra), "total": mean(itm) + config.wra_weight * mean(wra)}


def transport_distance(words: Tensor, regions: Tensor, beta: float = 0.5, iterations: int = 50) -> Tensor:
    """IPOT (arXiv 1802.04307, algorithm 1) on 1 - cosine; the plan carries no gradient. n words, m regions, mass 1 on either side.

    As released, an iteration scales the regions' side first and ends on the words'.
    """
    x = words / words.norm(dim=1, keepdim=True)
    y = regions / regions.norm(dim=1, keepdim=True)
    cost = 1 - x @ y.T
    n, m = cost.shape
    with torch.no_grad():
        kernel = torch.exp(-cost / beta)
        plan = torch.ones(n, m, dtype=torch.float64)
        sigma = torch.ones(n, dtype=torch.float64) / n
        for _ in range(iterations):
            q = kernel * plan
            delta = 1 / (m * (q.T @ sigma))
            sigma = 1 / (n * (q @ delta))
            plan = torch.diag(sigma) @ q @ torch.diag(delta)
    return (plan * cost).sum()


def words(
    w: Weights, bank: Bank, texts: list[Tensor], images: list[int], config: PretrainConfig, vocab: Vocabulary, random, heads: int
) -> Terms:
    """MLM: -log p of the piece that was there."""
    lengths = torch.tensor([len(text) for text in texts])
    padded = torch.full((len(texts), int(lengths.max())), vocab.pad)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    chosen = choose_pieces(lengths, padded.shape[1], random, config.mask_probability)
    masked = corrupt(padded, chosen, vocab, random)
    losses = []
    for row, (text, image) in enumerate(zip(texts, images)):
        x = uniter.states(w, uniter.pair_of(bank, masked[row, : len(text)], image), heads)
        for position in chosen[row].nonzero().flatten().tolist():
            losses.append(-uniter.log_softmax(uniter.word_logits(w, "mlm", x[position]))[text[position]])
    return {"mlm": mean(losses), "total": mean(losses)}


def regions(
    w: Weights, bank: Bank, texts: list[Tensor], images: list[int], config: PretrainConfig, task: str, random, heads: int
) -> Terms:
    """MRFR, MRC-KL or MRC at the hidden regions."""
    counts = bank.regions.lengths[torch.tensor(images)]
    hidden = choose_regions(counts, random, config.mask_probability).split(counts.tolist())
    losses = []
    for text, image, gone in zip(texts, images, hidden):
        pair = uniter.pair_of(bank, text, image, gone)
        x = uniter.states(w, pair, heads)
        first = int(bank.regions.lengths[:image].sum())
        for region in gone.nonzero().flatten().tolist():
            state = x[len(text) + region]
            if task == "mrfr":
                losses.append(((uniter.region_feature(w, state) - pair.features[region]) ** 2).mean())
            else:
                assert bank.classes is not None
                soft = bank.classes[first + region].double()
                losses.append(region_class_loss(uniter.region_logits(w, state), soft, task, bank.background_class))
    return {task: mean(losses), "total": mean(losses)}


def region_class_loss(logits: Tensor, soft: Tensor, task: str, background: bool) -> Tensor:
    """MRC-KL: sum_c q_c (log q_c - log p_c) / C. MRC: -log p of the likeliest class, column 0 left out where it is `background`."""
    log_p = uniter.log_softmax(logits)
    if task == "mrc":
        scores = soft.tolist()
        best = max(range(1 if background else 0, len(scores)), key=lambda c: scores[c])
        return -log_p[best]
    parts = [q * (torch.log(q) - log_p[c]) for c, q in enumerate(soft) if q > 0]
    return torch.stack(parts).sum() / len(soft)
