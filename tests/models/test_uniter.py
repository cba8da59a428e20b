"""The packed encoder against the literal padded one, its gradients, and kept positions."""


import pytest
import torch

from tagsds.models.uniter import Layout
from tests.models.plain_uniter import RAGGED, REGION_DIM, WIDTH, assert_same_gradients, gradients, model_of, pairs_of, reference

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


def test_dropout_only_in_training():
    model, pairs = model_of(), pairs_of(**RAGGED)
    assert torch.equal(model(pairs), model(pairs))
    model.train()
    assert not torch.allclose(model(pairs), model(pairs), atol=1e-3)
    still = model_of(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    evaluated = still(pairs)
    assert torch.equal(still.train()(pairs), evaluated)
