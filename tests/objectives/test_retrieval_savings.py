"""What a step must not compute twice, or at all (the exact savings)."""


import pytest
import torch

from tagsds.negatives.random import mine_random
from tagsds.negatives.writer import mask_captions, write_negatives
from tests.objectives.test_retrieval import CAPTIONS, DRAW, config_of, corpus, objective_of

__all__ = ["corpus"]  # a fixture

@pytest.fixture
def watched(corpus):
    """One TAGS-DC step; rows seen by each watched module, apart without and with gradient, and the last packed pairs."""
    config = config_of(maskings=5, refills=6)
    objective = objective_of(corpus, config)
    model, rows, seen = objective.model, {}, []
    watch = {
        "images": model.image_embedding, "texts": model.text_embedding, "first layer": model.layers[0].qkv,
        "last layer": model.layers[-1].expand, "pooled": model.pooler, "vocabulary": model.mlm.decoder,
        "correction": model.correct.decoder,
    }  # fmt: skip

    def count(name):
        def hook(_, args, out):
            out = out[0] if isinstance(out, tuple) else out
            rows.setdefault((name, torch.is_grad_enabled()), []).append(len(out))

        return hook

    hooks = [part.register_forward_hook(count(name)) for name, part in watch.items()]
    hooks.append(model.register_forward_pre_hook(lambda _, args: seen.append(args[0]) if torch.is_grad_enabled() else None))
    report = objective(corpus[0], CAPTIONS, DRAW)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 1, "one forward with gradient"
    return objective, config, report, rows, seen[0]


def drawn(corpus, objective, config):
    bank, _, vocab = corpus
    images, others = mine_random(bank, CAPTIONS, 6, 4, objective.scorer, DRAW)
    maskings = mask_captions(bank, CAPTIONS, config.synthetic, vocab, DRAW.generator("cpu", "mask"))
    everything = write_negatives(objective.model, objective.scorer, bank, CAPTIONS, maskings, config.synthetic, vocab, DRAW)
    return images, others, maskings, everything


def test_each_image_is_embedded_once(corpus, watched):
    objective, config, _, rows, _ = watched
    bank = corpus[0]
    images, *_ = drawn(corpus, objective, config)
    distinct = {*bank.image_of_caption[CAPTIONS].tolist(), *images.index.flatten().tolist()}
    assert rows["images", True] == [sum(len(bank.regions[i]) for i in distinct)]
    # without gradient: both mining directions together, the maskings, the candidates
    assert len(rows["images", False]) == 3
    assert all(count <= len(bank.regions.values) for count in rows["images", False])


def test_the_true_pair_is_forwarded_once(corpus, watched):
    bank, (*_, pairs) = corpus[0], watched
    texts = [pairs.texts[t].tolist() for t in pairs.text_of_pair.tolist()]
    ends = pairs.images.lengths.cumsum(0).tolist()
    regions = [pairs.images.regions.values[ends[i] - int(pairs.images.lengths[i]) : ends[i]] for i in range(len(ends))]
    for caption in CAPTIONS.tolist():
        ids, own = bank.tokens[caption].tolist(), bank.regions[int(bank.image_of_caption[caption])]
        held = [t == ids and torch.equal(regions[i], own) for t, i in zip(texts, pairs.image_of_pair.tolist())]
        assert sum(held[:-20]) == 1  # the last 20 are maskings, which may by chance leave every word as it was


def test_vocabulary_logits_at_masked_positions_only(corpus, watched):
    objective, config, _, rows, _ = watched
    _, _, maskings, everything = drawn(corpus, objective, config)
    hidden = int(maskings.chosen.sum())
    assert rows["vocabulary", False] == [hidden]  # to refill
    assert rows["vocabulary", True] == [hidden]  # to learn
    kept = everything.hardest(4, 4)
    assert rows["correction", True] == [int(kept.masked.sum())] and ("correction", False) not in rows


def test_last_layer_at_kept_positions_only(corpus, watched):
    objective, config, report, rows, pairs = watched
    images, others, maskings, everything = drawn(corpus, objective, config)
    kept = everything.hardest(4, 4)
    scored = 4 + images.index.numel() + others.index.numel() + len(kept.ids)
    others_of_written = int((maskings.lengths[kept.caption] - 1).sum())  # every piece but [CLS], which is scored anyway
    hidden = int(maskings.chosen.sum())
    assert rows["last layer", True] == [scored + others_of_written + hidden]
    assert rows["pooled", True] == [scored]
    assert rows["last layer", True][0] < int(pairs.lengths.sum()) / 2
    # without gradient: [CLS] of what is scored, and the masked positions that are refilled
    assert sum(rows["last layer", False]) == 2 * 6 * 4 + len(everything.ids) + hidden
    assert report.forwards == 2 * 6 * 4 + 4 * 5 + len(everything.ids) + scored + 4 * 5


def test_dropped_candidates_are_not_scored(corpus, watched):
    _, _, report, rows, _ = watched
    left = int(report.counters["filter/false_of_image"][0])
    assert sum(rows["pooled", False]) == 2 * 6 * 4 + left
    assert left < int(report.counters["filter/written"][0]) == 4 * 5 * 6


def test_first_layer_projects_table_rows(watched):
    """The first projection is taken once a table row, not once a pair."""
    *_, rows, pairs = watched
    assert rows["first layer", True] == [len(pairs.texts.values) + len(pairs.images.regions.values)]
    assert rows["first layer", True][0] < int(pairs.lengths.sum())
