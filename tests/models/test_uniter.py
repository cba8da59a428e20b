"""The packed encoder against a literal padded one, kept positions, saving, and how heads begin.

The reference below is written from the formulas (BERT, arXiv 1810.04805; UNITER, arXiv 1909.11740) on one padded batch:
every pair holds its own copy of its text and image, LayerNorm, GELU and softmax are spelt out, and the weights are the
model's own parameters, read by name, so that gradients can be compared parameter by parameter.
"""

import copy
import math

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tagsds.data.pairs import Images, Pairs, geometry_of
from tagsds.data.ragged import Ragged
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.heads import initialise_heads
from tagsds.models.uniter import Layout

HEADS, WIDTH, REGION_DIM = 4, 24, 10


def config(**changes) -> UniterConfig:
    sizes = dict(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=40,
        max_position_embeddings=16,
        region_dim=REGION_DIM,
        num_region_classes=7,
    )
    return UniterConfig(**(sizes | changes))


def model_of(seed: int = 0, **changes) -> UniterModel:
    """In eval mode, every parameter off its initial value (LayerNorm off 1, biases and mask embedding off 0)."""
    torch.manual_seed(seed)
    model = UniterModel(config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2, 2).sort(dim=1).values  # x1 < x2, y1 < y2
    return corners.flatten(1)


def pairs_of(
    texts: list[int],
    images: list[int],
    held: list[tuple[int, int]],
    masked: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Tables with the given lengths and the given (text, image) pairs."""
    torch.manual_seed(1)
    regions = sum(images)
    table = Images(
        Ragged(torch.randn(regions, REGION_DIM, dtype=dtype), torch.tensor(images)),
        geometry_of(boxes(regions).to(dtype)),
        torch.rand(regions) < 0.4 if masked else None,
    )
    text_of_pair, image_of_pair = (torch.tensor(column) for column in zip(*held))
    return Pairs(Ragged(torch.randint(1, 50, (sum(texts),)), torch.tensor(texts)), table, text_of_pair, image_of_pair)


RAGGED = dict(
    texts=[4, 2, 7, 5],
    images=[3, 1, 6],
    held=[(0, 0), (2, 2), (2, 0), (1, 1), (0, 0), (3, 2), (2, 1)],  # rows repeated, (0, 0) even as a pair; all are used
)


# --- the reference -------------------------------------------------------------------------------------------------


def norm(x: Tensor, p: dict, name: str) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-12) * p[f"{name}.weight"] + p[f"{name}.bias"]


def dense(x: Tensor, p: dict, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def transform(x: Tensor, p: dict, name: str) -> Tensor:
    return norm(gelu(dense(x, p, f"{name}.dense")), p, f"{name}.norm")


def reference(p: dict[str, Tensor], pairs: Pairs, layers: int) -> list[Tensor]:
    """States of each pair, [length, H] each, computed in one padded batch."""
    sequences = []
    for text, image in zip(pairs.text_of_pair.tolist(), pairs.image_of_pair.tolist()):
        ids = pairs.texts[text]
        words = (
            p["text_embedding.word.weight"][ids]
            + p["text_embedding.position.weight"][: len(ids)]
            + p["text_embedding.token_type.weight"][0]
        )
        rows = slice(int(pairs.images.lengths[:image].sum()), int(pairs.images.lengths[: image + 1].sum()))
        feature = pairs.images.regions.values[rows]
        if pairs.images.masked is not None:
            hidden = pairs.images.masked[rows, None].to(feature.dtype)
            feature = feature * (1 - hidden) + p["image_embedding.mask"] * hidden
        x1, y1, x2, y2 = pairs.images.geometry[rows, :4].unbind(dim=1)
        box = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], dim=1)
        regions = (
            norm(dense(feature, p, "image_embedding.feature"), p, "image_embedding.feature_norm")
            + norm(dense(box, p, "image_embedding.box"), p, "image_embedding.box_norm")
            + p["text_embedding.token_type.weight"][1]
        )
        sequences.append(torch.cat([norm(words, p, "text_embedding.norm"), norm(regions, p, "image_embedding.norm")]))

    lengths = [len(sequence) for sequence in sequences]
    longest, size = max(lengths), WIDTH // HEADS
    x = torch.stack([torch.cat([s, s.new_full((longest - len(s), WIDTH), 3.0)]) for s in sequences])  # [P, L, H]
    absent = torch.arange(longest)[None, :] >= torch.tensor(lengths)[:, None]
    for n in range(layers):
        queries, keys, values = dense(x, p, f"layers.{n}.qkv").split(WIDTH, dim=-1)
        context = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weight = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(size)
            weight = weight.masked_fill(absent[:, None, :], -math.inf).exp()
            context.append(weight / weight.sum(dim=-1, keepdim=True) @ values[..., part])
        x = norm(x + dense(torch.cat(context, dim=-1), p, f"layers.{n}.attention_out"), p, f"layers.{n}.attention_norm")
        inner = gelu(dense(x, p, f"layers.{n}.expand"))
        x = norm(x + dense(inner, p, f"layers.{n}.contract"), p, f"layers.{n}.norm")
    return [x[pair, :length] for pair, length in enumerate(lengths)]


def gradients(loss: Tensor, model: UniterModel) -> dict[str, Tensor | None]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)))


def assert_same_gradients(ours: dict, theirs: dict, atol: float) -> int:
    """None and zero are the same; how many parameters have a gradient."""
    reached = 0
    for name, gradient in ours.items():
        other = theirs[name]
        gradient = torch.zeros(()) if gradient is None else gradient
        other = torch.zeros(()) if other is None else other
        assert torch.allclose(gradient, other.to(gradient.dtype), atol=atol, rtol=0), name
        reached += bool((other != 0).any())
    return reached


# --- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "tables",
    [
        RAGGED,
        dict(texts=[5, 5], images=[4], held=[(0, 0), (1, 0), (0, 0)]),  # all of one length: no padding anywhere
        dict(texts=[2], images=[1], held=[(0, 0)]),
        dict(texts=[3, 8, 2], images=[5, 2], held=[(1, 1), (1, 1)]),  # rows that no pair uses
    ],
)
def test_packed_equals_padded(tables, masked):
    model, pairs = model_of(), pairs_of(**tables, masked=masked)
    states = model(pairs)
    expected = torch.cat(reference(dict(model.named_parameters()), pairs, layers=3))
    assert states.shape == (int(pairs.lengths.sum()), WIDTH)
    assert torch.allclose(states, expected, atol=1e-5)


def test_region_masks_change_masked_images_only():
    model, pairs = model_of(), pairs_of(**RAGGED)
    plain = model(pairs)
    pairs.images.masked = torch.zeros(10, dtype=torch.bool)
    assert torch.allclose(model(pairs), plain, atol=1e-6)
    pairs.images.masked[3] = True  # the only region of image 1, held by pairs 3 and 6
    owner = torch.arange(7).repeat_interleave(pairs.lengths)
    changed = (model(pairs) - plain).abs().amax(dim=1) > 1e-4
    assert changed[(owner == 3) | (owner == 6)].all() and not changed[(owner != 3) & (owner != 6)].any()


def test_float16_features_are_cast():
    model, pairs = model_of(), pairs_of(**RAGGED)
    half = pairs.images.regions.values.half()
    pairs.images.regions.values = half
    states = model(pairs)
    pairs.images.regions.values = half.float()
    assert states.dtype == torch.float32 and torch.equal(states, model(pairs))


def test_pairs_do_not_see_one_another():
    model, pairs = model_of(), pairs_of(**RAGGED)
    states, starts = model(pairs), Layout.of(pairs).starts
    for pair in range(len(pairs)):
        alone = model(pairs.subset(torch.tensor([pair])))
        assert torch.allclose(alone, states[starts[pair] : starts[pair + 1]], atol=1e-5)
    assert torch.allclose(model(pairs.compact()), states, atol=1e-6)


def test_a_table_embedded_before_gives_the_same():
    model, pairs = model_of(), pairs_of(**RAGGED, masked=True)
    assert torch.equal(model(pairs, table=model.embed(pairs.texts, pairs.images)), model(pairs))


def test_layout():
    # lengths 4+3, 7+6, 7+3, 2+1, 4+3, 5+6, 7+1
    layout = Layout.of(pairs_of(**RAGGED))
    assert layout.starts.tolist() == [0, 7, 20, 30, 33, 40, 51, 59]
    assert layout.cls().tolist() == [0, 7, 20, 30, 33, 40, 51]
    some = torch.tensor([0, 3, 2])  # pair 3 is [CLS] [SEP] and one region
    assert layout.cls(some).tolist() == [0, 30, 20]
    assert layout.words(some).tolist() == [1, 2, 21, 22, 23, 24, 25]
    assert layout.regions(some).tolist() == [4, 5, 6, 32, 27, 28, 29]


# --- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_all_parameters_equal_padded(masked):
    """In float64, so that the bound is tight."""
    model = model_of().double()
    pairs = pairs_of(**RAGGED, masked=masked, dtype=torch.float64)
    expected = torch.cat(reference(dict(model.named_parameters()), pairs, layers=3))
    states = model(pairs)
    assert torch.allclose(states, expected, atol=1e-10)
    weight = torch.randn_like(states)
    reached = assert_same_gradients(
        gradients((states * weight).sum(), model), gradients((expected * weight).sum(), model), atol=1e-8
    )
    # word, position, type; their norm; feature and box; their norms and the image's; 3 layers of 4 matrices and 2 norms
    assert reached == 3 + 2 + 2 * 2 + 3 * 2 + 3 * (4 + 2) * 2 + masked


def test_every_encoder_parameter_takes_part_without_masks():
    """The mask embedding gets a zero gradient, not none (ZeRO-3 waits for every parameter)."""
    model = model_of()
    model(pairs_of(**RAGGED)).sum().backward()
    assert torch.equal(model.image_embedding.mask.grad, torch.zeros(REGION_DIM))


# --- kept positions ------------------------------------------------------------------------------------------------

KEEP = {
    "cls": [0, 7, 20, 30, 33, 40, 51],
    "several, one, none": [1, 2, 6, 7, 30, 31, 32, 58],
    "first pair only": [0, 3],
    "last token": [58],
    "everything": list(range(59)),
    "as many of each": [0, 1, 7, 8, 20, 21, 30, 31, 33, 34, 40, 41, 51, 52],
}


@pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP.keys())
@pytest.mark.parametrize("layers", [1, 3])
def test_keep_equals_slicing(keep, layers):
    model = model_of(num_hidden_layers=layers).double()
    pairs = pairs_of(**RAGGED, masked=True, dtype=torch.float64)
    index = torch.tensor(keep)
    kept, full = model(pairs, keep=index), torch.cat(reference(dict(model.named_parameters()), pairs, layers))[index]
    assert torch.allclose(kept, full, atol=1e-10)
    assert torch.allclose(kept, model(pairs)[index], atol=1e-10)
    weight = torch.randn_like(kept)
    assert_same_gradients(gradients((kept * weight).sum(), model), gradients((full * weight).sum(), model), atol=1e-8)


def test_keep_nothing_still_has_a_graph():
    model, pairs = model_of(), pairs_of(**RAGGED)
    kept = model(pairs, keep=torch.empty(0, dtype=torch.int64))
    assert kept.shape == (0, WIDTH)
    kept.sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith(("text_embedding", "image_embedding", "layers")):
            assert parameter.grad is not None and not parameter.grad.any(), name


# --- heads ---------------------------------------------------------------------------------------------------------


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


def test_dropout_only_in_training():
    model, pairs = model_of(), pairs_of(**RAGGED)
    assert torch.equal(model(pairs), model(pairs))
    model.train()
    assert not torch.allclose(model(pairs), model(pairs), atol=1e-3)
    still = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    evaluated = still(pairs)
    assert torch.equal(still.train()(pairs), evaluated)


# --- saving --------------------------------------------------------------------------------------------------------


def assert_tied(model: UniterModel) -> None:
    assert model.mlm.decoder.weight is model.text_embedding.word.weight
    assert model.correct.decoder.weight is model.text_embedding.word.weight


@pytest.mark.parametrize("load", [UniterModel.from_pretrained, AutoModel.from_pretrained])
def test_saving_keeps_everything(tmp_path, load):
    model, pairs = model_of(trained_heads=["itm", "mlm"]), pairs_of(**RAGGED, masked=True)
    assert_tied(model)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = load(tmp_path).eval()
    assert type(loaded) is UniterModel
    assert_tied(loaded)
    assert loaded.config.trained_heads == ["itm", "mlm"] and loaded.config.region_dim == REGION_DIM
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    # loaded weights lie in the mapped file at any address, and a sum's last bit depends on the alignment: copy both
    model, loaded = copy.deepcopy(model), copy.deepcopy(loaded)
    states = model(pairs)
    assert torch.equal(states, loaded(pairs))
    for head in ("mlm", "correct", "itm", "rank", "discriminate", "region_class"):
        assert torch.equal(getattr(model, head)(states), getattr(loaded, head)(states)), head
    assert torch.equal(model.score(states), loaded.score(states))


def test_a_step_after_loading_moves_both_ends_of_the_tie(tmp_path):
    model_of().save_pretrained(tmp_path)
    loaded = UniterModel.from_pretrained(tmp_path)
    with torch.no_grad():
        loaded.text_embedding.word.weight[7] += 1
    assert torch.equal(loaded.mlm.decoder.weight[7], loaded.text_embedding.word.weight[7])
    assert torch.equal(loaded.correct.decoder.weight[7], loaded.text_embedding.word.weight[7])


def test_config_round_trip(tmp_path):
    config(trained_heads=["itm"]).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is UniterConfig
    ours, theirs = config(trained_heads=["itm"]).to_diff_dict(), loaded.to_diff_dict()
    assert ours == theirs and theirs["trained_heads"] == ["itm"] and theirs["region_dim"] == REGION_DIM


def test_fresh_weights_are_berts():
    torch.manual_seed(0)
    fresh = UniterModel(config(vocab_size=2000, hidden_size=64, intermediate_size=256))
    assert_tied(fresh)
    for name, parameter in fresh.named_parameters():
        if parameter.dim() == 2 and parameter.numel() > 1000:
            assert abs(parameter.std().item() - 0.02) < 0.002, name
        elif name.endswith(("norm.weight",)):
            assert (parameter == 1).all(), name
        elif name.endswith("bias") or name.endswith("mask"):
            assert not parameter.any(), name


# --- how heads begin -----------------------------------------------------------------------------------------------


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
