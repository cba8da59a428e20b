"""The package's step against the plain one: the same losses and gradient from the same draws, in less time."""

import time

import pytest
import torch

from tagsds.config import RunConfig
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.objectives.retrieval import RetrievalObjective
from tagsds.scoring.scorer import Scorer
from tests.bench.plain_step import plain_step
from tests.small_world import model_of


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "train")
    return bank, manifest, Vocabulary.of(load_tokenizer(world / "tokenizer"))


def config_of(count: int, keep: int, maskings: int, refills: int) -> RunConfig:
    config = RunConfig()
    config.negatives.count, config.negatives.keep = count, keep
    config.synthetic.maskings, config.synthetic.refills = maskings, refills
    config.loss.syn, config.loss.mlm, config.loss.disc, config.loss.corr = 0.5, 0.3, 0.2, 0.4
    return config


def test_the_same_losses_and_gradient(corpus):
    bank, manifest, vocab = corpus
    config = config_of(count=12, keep=4, maskings=4, refills=5)
    captions = torch.tensor([3, 141, 4, 250])
    model = model_of(manifest)
    objective = RetrievalObjective(model, config, vocab, Scorer(model))
    for step in range(3):
        draw = Draw(11, step, 0)
        report = objective(bank, captions, draw)
        total, terms = plain_step(model, bank, captions, draw, config, vocab)
        assert set(terms) == set(report.terms) == {"t2i", "i2t", "syn", "mlm", "disc", "corr"}
        for name, value in terms.items():
            assert float(report.terms[name]) == pytest.approx(value.item(), abs=1e-4, rel=1e-4), name
        assert float(report.total) == pytest.approx(total.item(), abs=1e-4)
        parameters = [model.layers[0].qkv.weight, model.image_embedding.feature.weight, model.rank.weight]
        parameters += [model.text_embedding.word.weight, model.correct.transform.dense.weight]
        ours, plain = (torch.autograd.grad(loss, parameters) for loss in (report.total, total))
        for a, b in zip(ours, plain):
            assert float((a - b).norm()) < 1e-3 * float(b.norm())


def test_in_less_time(corpus, capsys):
    """A sign of life: `python tests/bench/run.py` measures in earnest."""
    bank, manifest, vocab = corpus
    config = config_of(count=49, keep=8, maskings=6, refills=6)
    captions = torch.tensor([3, 141, 44, 250])
    model = model_of(manifest, hidden_size=32, intermediate_size=128)
    objective = RetrievalObjective(model, config, vocab, Scorer(model))

    def ours(step: int) -> None:
        objective(bank, captions, Draw(11, step, 0)).total.backward()

    def plain(step: int) -> None:
        plain_step(model, bank, captions, Draw(11, step, 0), config, vocab)[0].backward()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {"plain": [], "ours": []}
    try:
        for step in range(5):  # in turns, and in processor time: other work on the machine must not decide
            for name, run in (("plain", plain), ("ours", ours)):
                begin = time.process_time()
                run(step)
                taken[name].append(time.process_time() - begin)
    finally:
        torch.set_num_threads(threads)
    seconds = {name: min(values[1:]) for name, values in taken.items()}
    ratio = seconds["plain"] / seconds["ours"]
    with capsys.disabled():
        print(f"\nTAGS-DC step: plain {seconds['plain']:.3f} s, ours {seconds['ours']:.3f} s, ratio {ratio:.2f}")
    assert ratio > 1.0
