"""All three matchers against one-pair loops written from the papers (matcher_reference.py); padding, saving, precision, memory."""

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from tagsds.data.pairs import select_images
from tagsds.errors import UserError
from tagsds.models import MATCHERS
from tagsds.models.matchers import Encoded, matcher
from tests.models.matcher_reference import SIMILARITY, Weights
from tests.models.matcher_world import EMBED, REGIONS, WORDS, captions_of, gradients, images_of, matcher_of

CASES = [
    ("vsrn", dict(image_norm=False)),
    ("vsrn", dict(image_norm=True)),
    ("scan", dict(direction="t2i", pooling="lse")),
    ("scan", dict(direction="t2i", pooling="avg")),
    ("scan", dict(direction="i2t", pooling="lse")),
    ("scan", dict(direction="i2t", pooling="avg")),
    ("bfan", dict(focal="equal")),
    ("bfan", dict(focal="prob")),
]
each_case = pytest.mark.parametrize("name, options", CASES, ids=str)
each_name = pytest.mark.parametrize("name", list(MATCHERS))


def weights_of(model) -> Weights:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def literal(name: str, model, images, captions) -> Tensor:
    """[I, C], pair by pair."""
    weights, pair = weights_of(model), SIMILARITY[name]
    rows = [[pair(weights, model.config, images.regions[i], captions[c]) for c in range(len(captions))] for i in range(len(images))]
    return torch.stack([torch.stack(row) for row in rows])


@each_case
def test_compare_equals_the_loop_with_every_gradient(name, options):
    model, images, captions = matcher_of(name, **options), images_of(), captions_of()
    ours, theirs = model.similarity(images, captions), literal(name, model, images, captions)
    assert ours.shape == (4, 5) and theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)
    coefficients = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = (gradients(model, (coefficients * s).sum()) for s in (ours, theirs))
    for key, gradient in theirs.items():
        assert gradient.abs().max() > 1e-4 or "captioner" in key, key
        torch.testing.assert_close(ours[key], gradient, atol=1e-8, rtol=1e-8, msg=lambda m, key=key: f"{key}: {m}")


@each_case
def test_compare_pairs_is_the_diagonal_of_compare(name, options):
    model = matcher_of(name, **options)
    images, captions = model.encode_images(images_of()), model.encode_captions(captions_of())
    i, c = torch.tensor([2, 0, 0, 3, 1, 2]), torch.tensor([4, 1, 0, 1, 2, 4])
    matrix = model.compare(images, captions)[i, c]
    pairs = model.compare_pairs(images.select(i), captions.select(c))
    torch.testing.assert_close(pairs, matrix, atol=1e-12, rtol=0)
    coefficients = torch.arange(1.0, 7.0, dtype=torch.float64)
    ours, theirs = (gradients(model, (coefficients * s).sum()) for s in (pairs, matrix))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-10, rtol=1e-10)


@each_case
def test_an_image_alone_equals_the_image_in_a_batch(name, options):
    model, images, captions = matcher_of(name, **options), images_of(), captions_of()
    together = model.similarity(images, captions)
    for i in range(len(images)):
        for c in range(len(captions)):
            alone = model.similarity(select_images(images, torch.tensor([i])), captions.select(torch.tensor([c])))
            torch.testing.assert_close(alone, together[i : i + 1, c : c + 1], atol=1e-12, rtol=0)


@each_case
def test_blocks_of_captions_change_nothing(name, options, monkeypatch):
    model, images, captions = matcher_of(name, **options), images_of(), captions_of()
    whole = model.similarity(images, captions)
    calls = []
    if name != "vsrn":
        relate = model.relate
        monkeypatch.setattr(model, "relate", lambda *args: calls.append(args[0].shape) or relate(*args))
    # I R = 4 x 5: room for one caption of 7 words, or several short ones
    monkeypatch.setattr(matcher, "CPU_BLOCK", 4 * 5 * 7)
    monkeypatch.setattr(matcher, "GROUPS", 1)
    with torch.no_grad():
        torch.testing.assert_close(model.similarity(images, captions), whole.detach(), atol=1e-12, rtol=0)
        assert not calls or calls == [(4, 1, 7, 5), (4, 1, 5, 5), (4, 1, 4, 5), (4, 2, 3, 5)]
        calls.clear()
        monkeypatch.setattr(matcher, "GROUPS", 4)  # every image of its own width
        torch.testing.assert_close(model.similarity(images, captions), whole.detach(), atol=1e-12, rtol=0)
        assert not calls or sorted({shape[3] for shape in calls}) == sorted(set(images.lengths.tolist()))
        monkeypatch.setattr(matcher, "CPU_BLOCK", 1)  # one caption does not fit, and is compared all the same
        torch.testing.assert_close(model.similarity(images, captions), whole.detach(), atol=1e-12, rtol=0)


@each_case
def test_half_precision_gives_float32_similarities_close_to_exact_ones(name, options):
    images, captions = images_of(), captions_of()
    exact = matcher_of(name, **options).similarity(images, captions)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = matcher_of(name, **options).float().similarity(images, captions)
    bfloat16 = matcher_of(name, **options).bfloat16().similarity(images, captions)
    for rounded in (autocast, bfloat16):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded.double(), exact, atol=0.1, rtol=0)
    single = matcher_of(name, **options).float()
    encoded = single.encode_images(images), single.encode_captions(captions)
    with torch.autocast("cpu", torch.bfloat16):
        inside = single.compare(*encoded)
    torch.testing.assert_close(inside, single.compare(*encoded), atol=0, rtol=0)


@each_name
def test_vectors_are_unit_vectors_with_zeros_behind(name):
    model = matcher_of(name)
    images, captions = model.encode_images(images_of()), model.encode_captions(captions_of())
    for side, lengths in ((images, REGIONS), (captions, WORDS)):
        wanted = [1] * len(lengths) if name == "vsrn" else lengths
        assert side.lengths.tolist() == wanted and side.vectors.shape == (len(lengths), max(wanted), EMBED)
        for row, length in zip(side.vectors, wanted):
            torch.testing.assert_close(row[:length].norm(dim=-1), torch.ones(length, dtype=torch.float64))
            assert (row[length:] == 0).all()


@each_case
def test_saved_and_loaded_by_automodel(name, options, tmp_path):
    model, images, captions = matcher_of(name, **options).float(), images_of(), captions_of()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MATCHERS[name].config
    assert all(getattr(config, key) == value for key, value in options.items())
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is MATCHERS[name].model
    state = model.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, state[key]), key
    # not to the bit: products round differently in memory aligned differently
    torch.testing.assert_close(loaded.similarity(images, captions), model.similarity(images, captions), atol=1e-5, rtol=0)


@each_name
def test_initial_weights(name):
    config_class, model_class = MATCHERS[name].config, MATCHERS[name].model
    model = model_class(config_class(vocab_size=400, region_dim=30, embed_size=50))
    words = model.text.word.weight
    assert words.shape == (400, 300) and -0.1 <= words.min() < -0.099 and 0.099 < words.max() <= 0.1
    bound = (6 / (30 + 50)) ** 0.5  # Xavier
    fc = model.project
    assert 0.97 * bound < fc.weight.abs().max() <= bound and (fc.bias == 0).all()
    assert 0.95 * 50**-0.5 < model.text.gru.weight_ih_l0.abs().max() <= 50**-0.5


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("scan", dict(direction="t2j"), "direction of the matcher is 't2j': did you mean 't2i'?"),
        ("scan", dict(pooling="sum"), "pooling of the matcher is 'sum': known: avg, lse."),
        ("bfan", dict(focal="equl"), "focal of the matcher is 'equl': did you mean 'equal'?"),
    ],
)
def test_unknown_options_are_named(name, options, sentence):
    with pytest.raises(UserError) as error:
        matcher_of(name, **options)
    assert str(error.value) == sentence


def test_sizes_of_the_papers():
    for name, wanted in (("vsrn", 2048), ("scan", 1024), ("bfan", 1024)):
        assert MATCHERS[name].config().embed_size == wanted
    config = MATCHERS["scan"].config
    assert (config().lambda_softmax, config().lambda_lse) == (9, 6)
    assert (config(direction="i2t").lambda_softmax, config(direction="i2t").lambda_lse) == (4, 5)


@pytest.mark.parametrize("name, options", CASES[2:], ids=str)
def test_attended_vectors_are_never_held(name, options):
    """With gradient, compare keeps a few numbers a pair of fragments, far fewer than the E of an attended vector."""
    count, regions, words, width = 24, 9, 7, 512
    generator = torch.Generator().manual_seed(0)
    v = torch.nn.functional.normalize(torch.randn(count, regions, width, generator=generator), dim=-1).requires_grad_()
    w = torch.nn.functional.normalize(torch.randn(count, words, width, generator=generator), dim=-1).requires_grad_()
    images, captions = Encoded(v, torch.full((count,), regions)), Encoded(w, torch.full((count,), words))
    held: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        score = matcher_of(name, **options).compare(images, captions)
    fragment_pairs = count * count * regions * words
    most = 14 * fragment_pairs + v.numel() + w.numel()
    assert sum(held.values()) / 4 < most < count * count * min(regions, words) * width
    score.sum().backward()
    assert v.grad.isfinite().all() and w.grad.isfinite().all()
