"""What is read off the states, and how a stage's new heads begin."""


import torch

from tagsds.models.uniter.initialise import initialise_heads
from tests.models.plain_uniter import WIDTH, assert_tied, dense, model_of, transform


def test_heads_by_formula():
    model = model_of().double()
    p = dict(model.named_parameters())
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    pooled = torch.tanh(dense(x, p, "pooler.dense"))
    words = p["text_embedding.word.weight"]
    expected = {
        "score": (dense(pooled, p, "rank")[:, 0], model.score(x)),
        "mlm": (transform(x, p, "mlm.transform") @ words.T + p["mlm.decoder.bias"], model.mlm(x)),
        "correct": (transform(x, p, "correct.transform") @ words.T + p["correct.decoder.bias"], model.correct(x)),
        "region_feature": (
            transform(x, p, "region_feature.transform") @ p["image_embedding.feature.weight"]
            + p["region_feature.bias"],
            model.region_feature(x, model.image_embedding.feature.weight),
        ),
        "region_class": (
            dense(transform(x, p, "region_class.transform"), p, "region_class.decoder"),
            model.region_class(x),
        ),
        "itm": (dense(pooled, p, "itm"), model.itm(model.pooler(x))),
        "discriminate": (dense(x, p, "discriminate"), model.discriminate(x)),
    }
    for name, (literal, ours) in expected.items():
        assert literal.shape == ours.shape, name
        assert torch.allclose(literal.to(ours.dtype), ours, atol=1e-6), name
    assert model.score(x).dtype == torch.float32


def test_new_heads_begin_from_the_named_ones():
    model = model_of(trained_heads=["itm", "mlm"])
    done = initialise_heads(model, ["rank", "discriminate", "correct"])
    assert done == ["rank <- itm", "discriminate <- itm", "correct <- mlm"]
    assert torch.equal(model.rank.weight, model.itm.weight[1:2]) and torch.equal(model.rank.bias, model.itm.bias[1:2])
    assert torch.equal(model.discriminate.weight, model.itm.weight)
    assert torch.equal(model.discriminate.bias, model.itm.bias)
    x = torch.randn(3, WIDTH)
    assert torch.equal(model.correct(x), model.mlm(x))
    assert_tied(model)
    # the score orders pairs as the pre-trained itm row 1 does
    assert torch.allclose(model.score(x), model.itm(model.pooler(x))[:, 1], atol=1e-6)


def test_new_heads_are_copies():
    model = model_of(trained_heads=["itm", "mlm"])
    initialise_heads(model, ["rank", "discriminate", "correct"])
    rank, itm = model.rank.weight.clone(), model.itm.weight.clone()
    mlm = model.mlm.transform.dense.weight.clone()
    with torch.no_grad():
        model.itm.weight.zero_(), model.discriminate.weight.add_(1), model.correct.transform.dense.weight.zero_()
    assert torch.equal(model.rank.weight, rank) and torch.equal(model.discriminate.weight, itm + 1)
    assert torch.equal(model.mlm.transform.dense.weight, mlm)


def test_trained_heads_are_left_alone():
    model = model_of(trained_heads=["itm", "mlm", "rank"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert initialise_heads(model, ["rank", "itm", "mlm"]) == []
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert initialise_heads(model, ["rank", "discriminate"]) == ["discriminate <- itm"]
    assert torch.equal(model.rank.weight, before["rank.weight"])


def test_heads_nobody_needs_or_whose_source_is_untrained_are_left_alone():
    model = model_of(trained_heads=["mlm"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert initialise_heads(model, ["rank", "discriminate"]) == []  # itm is not trained
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert initialise_heads(model, ["correct"]) == ["correct <- mlm"]
    assert torch.equal(model.rank.weight, before["rank.weight"])
