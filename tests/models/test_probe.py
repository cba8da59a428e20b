"""The probe of cascade mining: its score against the literal formula, what it adds to a model, what comes back from a folder."""

import math

import pytest
import torch
from transformers import AutoModel

from tagsds.models import UniterModel
from tagsds.models.load import load_model
from tagsds.models.published.uniter import to_uniter
from tagsds.models.uniter.probe import QUERIES, SCALE
from tests.models.plain_uniter import RAGGED, model_of, pairs_of


@torch.no_grad()
def literal(model: UniterModel, pairs) -> list[float]:
    """One pair after another, one query after another."""
    text, token_type = model.text_embedding(pairs.texts)
    image = model.image_embedding(pairs.images, token_type)

    def vector(side, x):
        def scaled(linear, x):
            return 10 * (x @ linear.weight.T + linear.bias)

        logits, value = scaled(side.attend, x), scaled(side.value, x)
        width = value.shape[1] // QUERIES
        parts = []
        for query in range(QUERIES):
            weights = torch.exp(logits[:, query]) / torch.exp(logits[:, query]).sum()
            parts.append(sum(w * row for w, row in zip(weights, value[:, query * width : (query + 1) * width])))
        return scaled(side.out, torch.cat(parts))

    texts, images = text.split(pairs.texts.lengths.tolist()), image.split(pairs.images.lengths.tolist())
    return [
        float(vector(model.probe.text, texts[t]) @ vector(model.probe.image, images[i])) / math.sqrt(QUERIES * 3)
        for t, i in zip(pairs.text_of_pair.tolist(), pairs.image_of_pair.tolist())
    ]


def test_scores_are_those_of_the_formula():
    model, pairs = model_of(probe_queries=QUERIES), pairs_of(**RAGGED)
    found = model.probe_scores(pairs)
    assert found.dtype == torch.float32 and found.std() > 0.01
    torch.testing.assert_close(found, torch.tensor(literal(model, pairs)), atol=1e-5, rtol=1e-5)


def test_large_logits_and_an_image_without_regions():
    model = model_of(probe_queries=QUERIES)
    with torch.no_grad():
        model.probe.text.attend.bias.add_(500)  # exp of it is infinite
        model.probe.image.attend.weight.mul_(200)
    pairs = pairs_of(texts=[4, 6], images=[0, 3], held=[(0, 0), (1, 1), (1, 0)])
    scores = model.probe_scores(pairs)
    assert scores.isfinite().all()
    scores.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.probe.parameters())


def test_a_gradient_reaches_the_probe_alone():
    model, pairs = model_of(probe_queries=QUERIES), pairs_of(**RAGGED)
    model.probe_scores(pairs).square().sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {name for name, _ in model.named_parameters() if name.startswith("probe.")}
    # (the constant that the softmax of a text or image does not see has no gradient)
    zero = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() < 1e-6}
    assert zero <= {"probe.text.attend.bias", "probe.image.attend.bias"}


def test_a_model_without_it_has_the_keys_it_had():
    plain, probed = model_of(), model_of(probe_queries=QUERIES)
    assert not hasattr(plain, "probe") and plain.config.probe_queries == 0
    new = set(probed.state_dict()) - set(plain.state_dict())
    parts = ("attend", "value", "out")
    assert new == {f"probe.{side}.{part}.{what}" for side in ("text", "image") for part in parts for what in ("weight", "bias")}
    assert set(plain.state_dict()) <= set(probed.state_dict())
    assert set(to_uniter(plain, None)) == set(to_uniter(probed, None))  # a published file has no place for it


def test_added_by_a_seed_alone():
    some, other, third = model_of(), model_of(), model_of()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    some.add_probe(7)
    assert torch.equal(torch.rand(4), expected), "the global generator was drawn from"
    torch.manual_seed(99)
    other.add_probe(7)
    third.add_probe(8)
    assert all(torch.equal(a, b) for a, b in zip(some.probe.parameters(), other.probe.parameters()))
    assert not torch.equal(some.probe.text.value.weight, third.probe.text.value.weight)
    assert some.config.probe_queries == QUERIES and not some.probe.text.value.bias.any()
    assert SCALE * float(some.probe.image.out.weight.std()) == pytest.approx(1 / math.sqrt(24), rel=0.15)


def test_added_on_the_meta_device():
    with torch.device("meta"):
        model = UniterModel(model_of().config)
    model.add_probe(7)
    assert {p.device.type for p in model.probe.parameters()} == {"meta"}


@pytest.mark.parametrize("load", [UniterModel.from_pretrained, AutoModel.from_pretrained, load_model])
def test_saved_and_loaded(tmp_path, load):
    model, pairs = model_of(trained_heads=["rank"]), pairs_of(**RAGGED)
    model.add_probe(7)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path).eval()
    assert loaded.config.probe_queries == QUERIES
    assert set(loaded.state_dict()) == set(model.state_dict())
    torch.testing.assert_close(loaded.probe_scores(pairs), model.probe_scores(pairs), atol=1e-6, rtol=1e-6)


def test_a_fresh_model_begins_with_wide_weights():
    """Not BERT's 0.02, with which a dot product of two vectors would have next to no gradient."""
    torch.manual_seed(0)
    config = model_of().config
    config.probe_queries = QUERIES
    fresh = UniterModel(config)
    assert SCALE * float(fresh.probe.text.value.weight.std()) == pytest.approx(1 / math.sqrt(24), rel=0.15)
