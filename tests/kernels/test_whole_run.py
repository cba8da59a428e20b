"""The kernels of a CPU in a whole run: the same negatives are chosen and the same losses found as by plain torch."""

from __future__ import annotations

import pytest
import torch

from tagsds.config import RunConfig
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.draw import Draw
from tagsds.formats.manifest import read_manifest
from tagsds.kernels import choice
from tagsds.objectives.retrieval import RetrievalObjective
from tagsds.scoring.scorer import Scorer
from tests.small_world import model_of

STEPS = 12


def curves(world, forced: dict[str, str], monkeypatch) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Losses of each step, and the negatives that were chosen."""
    manifest = read_manifest(world)
    bank, _ = load_bank(world, "train")
    config = RunConfig()
    config.negatives.count, config.negatives.keep, config.synthetic.maskings, config.synthetic.refills = 23, 4, 3, 3
    config.loss.syn, config.loss.mlm, config.loss.disc, config.loss.corr = 1.0, 0.1, 0.5, 0.1
    model = model_of(manifest, hidden_size=32, num_attention_heads=2, intermediate_size=64)
    objective = RetrievalObjective(model, config, Vocabulary.of(load_tokenizer(world / "tokenizer")), Scorer(model))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    chosen: list[torch.Tensor] = []
    module = __import__("tagsds.negatives.random", fromlist=["keep_hardest"])
    keep_hardest = module.keep_hardest

    def remember(*given):
        found = keep_hardest(*given)
        chosen.extend(side.index.sort(dim=1).values for side in found)
        return found

    monkeypatch.setattr(module, "keep_hardest", remember)
    losses = []
    with choice.forced(forced):
        for step in range(STEPS):
            result = objective(bank, torch.arange(4) * 7 + step, Draw(3, step, 0))
            optimiser.zero_grad()
            result.total.backward()
            optimiser.step()
            losses.append({name: float(value.detach()) for name, value in result.terms.items()})
    monkeypatch.undo()
    return losses, chosen


@pytest.mark.skipif(not choice.compiled(), reason=f"no C++ kernels here: {choice.why_not_compiled()}")
def test_a_run_is_that_of_plain_torch(world, monkeypatch):
    monkeypatch.setattr("tagsds.kernels.linear.SMALL", 0)  # oneDNN for these small products, too
    plain, of_plain = curves(world, dict.fromkeys(choice.names(), "reference"), monkeypatch)
    monkeypatch.setattr("tagsds.kernels.linear.SMALL", 0)
    ours, of_ours = curves(world, {}, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(of_plain, of_ours, strict=True)) and len(of_plain) == 2 * STEPS
    for step, (a, b) in enumerate(zip(plain, ours, strict=True)):
        assert a.keys() == b.keys()
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-4, abs=1e-6), (step, name)
    assert plain[0] != plain[-1]
