"""What only VSRN has: graph layers that begin as the identity, BatchNorm over ragged rows, captioning."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tagsds.data.ragged import Ragged
from tagsds.errors import UserError
from tagsds.models.load import load_model
from tagsds.models.matchers import VSRN, VsrnConfig
from tagsds.models.matchers.images import RegionGraph, RowNorm
from tagsds.models.matchers.vsrn.captioner import teach
from tests.models.matcher_reference import caption_nll, region_states
from tests.models.matcher_world import EMBED, captions_of, gradients, images_of, matcher_of


def fresh(**changes) -> VSRN:
    torch.manual_seed(0)
    sizes = dict(vocab_size=23, region_dim=6, word_size=5, embed_size=EMBED, graph_layers=2, caption_hidden=7)
    return VSRN(VsrnConfig(**(sizes | changes)))


@pytest.mark.parametrize("training", [False, True])
def test_graph_layers_begin_as_the_identity(training):
    model = fresh().train(training)
    assert len(model.graph) == 2
    regions = model.project(images_of())
    for layer in model.graph:
        assert torch.equal(layer(regions).values, regions.values)
    # and they learn: the norm's weight and bias have a gradient, through which the rest will
    model.similarity(images_of(), captions_of()).square().sum().backward()
    assert all(layer.norm.weight.grad.abs().max() > 0 for layer in model.graph)


def test_batchnorm_over_ragged_rows_is_a_plain_one():
    """In training, the statistics are those of the real rows: a plain torch BatchNorm on each image's literal rows."""
    torch.manual_seed(0)
    layer, plain = RegionGraph(EMBED).double().train(), torch.nn.BatchNorm1d(EMBED).double().train()
    with torch.no_grad():
        for ours, theirs in zip(layer.norm.parameters(), plain.parameters()):
            ours.add_(torch.randn_like(ours))
            theirs.copy_(ours)
    regions = Ragged(torch.randn(11, EMBED, dtype=torch.float64), torch.tensor([3, 1, 5, 2]))
    rows = []
    for image in range(4):
        v = regions[image]
        rows.append(layer.out((layer.theta(v) @ layer.phi(v).T / len(v)) @ layer.g(v)))
    wanted = regions.values + plain(torch.cat(rows))
    torch.testing.assert_close(layer(regions).values, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(layer.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.norm.running_var, plain.running_var)


def test_a_single_row_trains_on_running_statistics():
    model = matcher_of("vsrn", image_norm=True)
    images, captions = images_of([1]), captions_of([3])
    evaluated = model.similarity(images, captions)
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    trained = model.train().similarity(images, captions)
    torch.testing.assert_close(trained, evaluated, atol=1e-12, rtol=0)
    assert all(torch.equal(buffer, before[key]) for key, buffer in model.named_buffers())
    trained.sum().backward()
    assert model.image_norm.weight.grad.isfinite().all()
    with pytest.raises(ValueError):  # what a plain BatchNorm does
        torch.nn.BatchNorm1d(4).train()(torch.ones(1, 4))
    assert RowNorm(4).train()(torch.ones(1, 4)).shape == (1, 4)


@pytest.mark.parametrize("pieces", [60, 8, 7, 6, 5, 2])
def test_captioning_loss_equals_the_loop_with_every_gradient(pieces):
    """Images of 3, 1, 5, 2 regions; captions shorter than, as long as and longer than what the captioner is taught."""
    model, images, captions = matcher_of("vsrn", caption_pieces=pieces), images_of(), captions_of([4, 7, 2, 5])
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    losses = [
        caption_nll(weights, model.config, region_states(weights, model.config, images.regions[p]), captions[p]) for p in range(4)
    ]
    theirs = sum(losses) / 4
    ours = model.captioning_loss(model.encode_images(images), captions)
    assert ours.shape == () and theirs > 1
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)
    ours, theirs = gradients(model, ours), gradients(model, theirs)
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, atol=1e-8, rtol=1e-8, msg=lambda m, key=key: f"{key}: {m}")
    for part in ("project.weight", "graph.0.g.weight", "captioner.region.weight", "captioner.attention.weight",
                 "captioner.next_word.bias"):  # fmt: skip
        assert ours[part].abs().max() > 1e-6, part


def test_what_the_captioner_is_taught():
    """One PAD behind the end where there is room, as the released code's mask has it; a long caption cut, its end kept."""
    captions = Ragged(torch.tensor([1, 5, 6, 2, 1, 7, 2, 1, 2]), torch.tensor([4, 3, 2]))
    words, targets, steps = teach(captions, 60)
    assert words.tolist() == [[1, 5, 6, 2], [1, 7, 2, 0], [1, 2, 0, 0]] and steps.tolist() == [4, 3, 2]
    assert targets.tolist() == [[5, 6, 2, 0], [7, 2, 0, 0], [2, 0, 0, 0]]
    words, targets, steps = teach(captions, 3)
    assert words.tolist() == [[1, 5], [1, 7], [1, 2]] and steps.tolist() == [2, 2, 2]
    assert targets.tolist() == [[5, 2], [7, 2], [2, 0]]


def test_dropout_is_drawn_where_it_was_published(monkeypatch):
    """On what enters the encoder's GRU and on [word, context], and nowhere else; none in evaluation."""
    model, images, captions = fresh(caption_dropout=0.25), images_of(), captions_of([4, 7, 2, 5])
    seen: list[tuple[tuple[int, ...], float, bool]] = []
    plain = torch.nn.functional.dropout

    def noted(x, p, training, inplace):
        seen.append((tuple(x.shape), p, training))
        return plain(x, p, training, inplace)

    monkeypatch.setattr(torch.nn.functional, "dropout", noted)
    losses = {}
    for training in (True, False):
        model.train(training)
        seen.clear()
        losses[training] = [model.captioning_loss(model.encode_images(images), captions).item() for _ in range(2)]
        assert seen == 2 * [((11, 7), 0.25, training), *7 * [((4, 5 + 7), 0.25, training)]]
    assert losses[True][0] != losses[True][1] and losses[False][0] == losses[False][1]
    assert all(module.dropout == 0 for module in model.modules() if isinstance(module, torch.nn.GRU))


def test_a_new_captioner_has_the_released_first_weights():
    """Xavier-normal where vid2hid and out are, torch's own elsewhere: N(0, 1) for the words."""
    torch.manual_seed(0)
    config = VsrnConfig(vocab_size=400, region_dim=6, word_size=50, embed_size=60, graph_layers=0, caption_hidden=80)
    captioner = VSRN(config).captioner
    assert captioner.region.weight.std().item() == pytest.approx((2 / (60 + 80)) ** 0.5, rel=0.03)
    assert captioner.next_word.weight.std().item() == pytest.approx((2 / (80 + 400)) ** 0.5, rel=0.03)
    assert captioner.word.weight.std().item() == pytest.approx(1, rel=0.03)
    for layer, inputs in ((captioner.attention, 160), (captioner.score, 80), (captioner.cell, 80)):
        weight = next(layer.parameters())
        assert 0.9 * inputs**-0.5 < weight.abs().max() <= inputs**-0.5


def test_captioning_of_captions_that_share_an_image():
    """Region states may be repeated: five captions an image cost one encoding."""
    model = matcher_of("vsrn")
    encoded, rows, captions = model.encode_images(images_of()), torch.tensor([1, 1, 0]), captions_of([4, 3, 5])
    encoded.states = encoded.states.select(rows)
    together = model.captioning_loss(encoded, captions)
    alone = []
    for p, row in enumerate(rows.tolist()):
        one = model.encode_images(images_of())
        one.states = one.states.select(torch.tensor([row]))
        alone.append(model.captioning_loss(one, captions.select(torch.tensor([p]))))
    torch.testing.assert_close(together, sum(alone) / 3, atol=1e-12, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_captioning_loss_is_float32(autocast):
    exact = matcher_of("vsrn")
    exact = exact.captioning_loss(exact.encode_images(images_of()), captions_of([4, 7, 2, 5]))
    model = matcher_of("vsrn").to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.captioning_loss(model.encode_images(images_of()), captions_of([4, 7, 2, 5]))
    assert loss.dtype == torch.float32 and abs(loss.item() - exact.item()) < 0.02 * exact.item()
    loss.backward()


def test_captioning_loss_falls():
    model, images, captions = fresh(caption_dropout=0.0).train(), images_of(), captions_of([4, 7, 2, 5])
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = model.captioning_loss(model.encode_images(images), captions)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_embed_gives_the_vectors_whose_products_are_the_similarities():
    model = matcher_of("vsrn")
    images, captions = model.embed(images=images_of()), model.embed(captions=captions_of())
    assert images.shape == (4, EMBED) and captions.shape == (5, EMBED)
    torch.testing.assert_close(images @ captions.T, model.similarity(images_of(), captions_of()), atol=1e-12, rtol=0)
    for wrong in ({}, dict(images=images_of(), captions=captions_of())):
        with pytest.raises(ValueError, match="one of them"):
            model.embed(**wrong)


def test_states_are_unit_region_states():
    states = matcher_of("vsrn").encode_images(images_of()).states
    assert states.lengths.tolist() == [3, 1, 5, 2] and states.values.shape == (11, EMBED)
    torch.testing.assert_close(states.values.norm(dim=-1), torch.ones(11, dtype=torch.float64))


def test_without_a_captioning_head():
    model = fresh(caption_hidden=0)
    assert not any("captioner" in key for key in model.state_dict())
    with pytest.raises(UserError, match="caption_hidden"):
        model.captioning_loss(model.encode_images(images_of()), captions_of([3, 3, 3, 3]))
    model = fresh()
    with pytest.raises(ValueError, match="region states"):
        model.captioning_loss(model.encode_images(images_of()), captions_of([3, 3]))


def test_a_captioning_head_begins_anew_where_the_checkpoint_has_none(tmp_path):
    matcher_of("vsrn", caption_hidden=0, image_norm=True).float().save_pretrained(tmp_path)
    loaded = VSRN.from_pretrained(tmp_path, caption_hidden=7)
    assert 0.5 < loaded.captioner.word.weight.std() < 1.5
    saved = matcher_of("vsrn", caption_hidden=0, image_norm=True).float().state_dict()
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in saved.items())


def earlier(folder) -> VSRN:
    """A folder as it was written before the captioner had a version: other weights under its name, no key in config.json."""
    model = matcher_of("vsrn", caption_hidden=0).float()
    decoder = {"word.weight": (23, 5), "key.weight": (7, EMBED), "key.bias": (7,), "query.weight": (7, 7), "score.weight": (1, 7)}
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(load_file(path) | {f"captioner.{name}": torch.ones(shape) for name, shape in decoder.items()}, path, {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("captioner_version") == 2
    for key in [key for key in config if key.startswith("caption")]:
        config.pop(key)
    path.write_text(json.dumps(config | {"caption_hidden": 7}))
    return model


@pytest.mark.parametrize("load", [VSRN.from_pretrained, AutoModel.from_pretrained, load_model])
def test_an_earlier_captioner_is_left_out_and_said_so(tmp_path, load):
    model = earlier(tmp_path)
    with pytest.warns(UserWarning, match="captioner is of an earlier form and is left out"):
        loaded = load(tmp_path)
    assert loaded.captioner is None and loaded.config.caption_hidden == 0
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    loaded.save_pretrained(tmp_path / "again")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert VsrnConfig.from_pretrained(tmp_path / "again").caption_hidden == 0
