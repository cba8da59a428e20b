"""Schedule, parameter groups and frozen heads."""

import pytest
import torch

from tagsds.config import OptimiserConfig
from tagsds.engine.build import adam_eps, build_optimiser, learning_rate, parameter_groups
from tagsds.models import MATCHERS, UniterConfig, UniterModel
from tagsds.models.uniter.initialise import HEADS
from tagsds.objectives.heads import train_only


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UniterModel(
        UniterConfig(
            vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=10, region_dim=5, num_region_classes=4,
        )
    )  # fmt: skip


# lr 0.1, 4 steps of warm-up, 12 in all: 1/4 2/4 3/4 4/4 of lr, then 8/8 7/8 .. 1/8
@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.025), (1, 0.05), (2, 0.075), (3, 0.1), (4, 0.1), (5, 0.0875), (8, 0.05), (11, 0.0125), (12, 0.0), (99, 0.0)],
)
def test_learning_rate_by_hand(step, expected):
    assert learning_rate(step, OptimiserConfig(lr=0.1, steps=12, warmup_steps=4)) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_without_warm_up():
    config = OptimiserConfig(lr=0.2, steps=4, warmup_steps=0)
    assert [learning_rate(step, config) for step in range(4)] == pytest.approx([0.2, 0.15, 0.1, 0.05])


def test_learning_rate_of_warm_up_alone():
    config = OptimiserConfig(lr=0.3, steps=3, warmup_steps=3)
    assert [learning_rate(step, config) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_learning_rate_published():
    """Stage 1: 5e-5, 500 of 5000; half-way through the decay, at step 2750, it is half."""
    config = OptimiserConfig()
    assert learning_rate(0, config) == pytest.approx(1e-7)
    assert learning_rate(499, config) == pytest.approx(5e-5)
    assert learning_rate(2750, config) == pytest.approx(2.5e-5)
    assert learning_rate(4999, config) == pytest.approx(5e-5 / 4500)


def undecayed_by_type(model) -> set[int]:
    """Biases and LayerNorm's parameters, found through the modules rather than the names, and the mask embedding."""
    out = {id(model.image_embedding.mask), id(model.region_feature.bias)}
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            out |= {id(module.weight), id(module.bias)}
        elif isinstance(module, torch.nn.Linear) and module.bias is not None:
            out.add(id(module.bias))
    return out


def test_parameter_groups(model):
    decayed, plain = parameter_groups(model, 0.03)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.03, 0.0)
    assert {id(p) for p in plain["params"]} == undecayed_by_type(model)
    everything = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())  # once each, the tied ones too
    assert id(model.text_embedding.word.weight) in {id(p) for p in decayed["params"]}


def test_frozen_parameters_are_in_no_group(model):
    model.itm.requires_grad_(False)
    groups = parameter_groups(model, 0.01)
    ids = {id(p) for group in groups for p in group["params"]}
    assert id(model.itm.weight) not in ids and id(model.itm.bias) not in ids and id(model.rank.weight) in ids


@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed's fused Adam on a GPU")
def test_optimiser_takes_the_recipe(model):
    config = OptimiserConfig(lr=0.003, betas=[0.7, 0.8], eps=1e-5, weight_decay=0.05)
    optimiser = build_optimiser(model, config, {})
    assert isinstance(optimiser, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0]
    assert all(group["lr"] == 0.003 and group["betas"] == (0.7, 0.8) and group["eps"] == 1e-5 for group in optimiser.param_groups)


@pytest.mark.parametrize(
    "heads",
    [["rank"], ["rank", "mlm"], ["rank", "mlm", "discriminate", "correct"], ["itm", "mlm", "region_feature"], [], list(HEADS)],
)
def test_train_only(model, heads):
    train_only(model, heads, HEADS)
    decoders = ("mlm.decoder.weight", "correct.decoder.weight")
    for head in HEADS:
        for name, parameter in model.get_submodule(head).named_parameters(prefix=head):
            assert parameter.requires_grad == (head in heads or name in decoders), name
    assert model.mlm.decoder.weight is model.text_embedding.word.weight  # the tied matrix belongs to the encoder
    rest = [p for name, p in model.named_parameters() if name.split(".")[0] not in HEADS]
    assert len(rest) > 30 and all(parameter.requires_grad for parameter in rest)


def test_train_only_thaws_what_an_earlier_stage_froze(model):
    train_only(model, ["itm"], HEADS)
    train_only(model, ["rank"], HEADS)
    assert model.rank.weight.requires_grad and not model.itm.weight.requires_grad


def test_learning_rate_by_steps():
    """0.1 after 2 steps of warm-up, a tenth at step 5 and again at 8."""
    config = OptimiserConfig(lr=0.1, steps=10, warmup_steps=2, decay_at=[5, 8])
    expected = [0.05, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001, 0.001]
    assert [learning_rate(step, config) for step in range(10)] == pytest.approx(expected)


def test_a_matchers_biases_and_batch_norms_are_not_decayed():
    make_config, make_model = MATCHERS["vsrn"].config, MATCHERS["vsrn"].model
    matcher = make_model(make_config(vocab_size=9, region_dim=4, word_size=3, embed_size=5, image_norm=True))
    plain = set()
    for module in matcher.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, torch.nn.BatchNorm1d) or name.startswith("bias"):
                plain.add(id(parameter))
    decayed, free = parameter_groups(matcher, 0.01)
    assert {id(p) for p in free["params"]} == plain
    assert not plain & {id(p) for p in decayed["params"]}
    assert len(decayed["params"]) + len(free["params"]) == len(list(matcher.parameters()))


def test_eps_before_the_bias_correction_by_hand():
    """sqrt(1 - b2^t) m / (sqrt(v) + eps) is m / (sqrt(v / (1 - b2^t)) + eps / sqrt(1 - b2^t))."""
    config = OptimiserConfig(eps=1e-6, betas=[0.9, 0.98], eps_uncorrected=True)
    assert adam_eps(0, config) == pytest.approx(1e-6 / 0.02**0.5) and adam_eps(1, config) == pytest.approx(1e-6 / 0.0396**0.5)
    assert adam_eps(2000, config) == pytest.approx(1e-6, rel=1e-12)
    assert adam_eps(0, OptimiserConfig(eps=1e-6)) == 1e-6
