"""Checkpoints of VSRN, SCAN and BFAN compute here what they computed there, and go back as they came."""

import argparse

import numpy as np
import pytest
import torch

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.errors import UserError
from tagsds.models.matchers import VSRN, VsrnConfig
from tagsds.models.published.files import read_published, write_published
from tagsds.models.published.matchers import from_matcher, kind_of, to_matcher
from tests.models import published_matchers as theirs

SETTINGS = [
    ("vsrn", {}),
    ("vsrn", {"data_name": "f30k_precomp"}),  # with a norm behind the GRU
    ("bfan", {"focal_type": "equal"}),
    ("bfan", {"focal_type": "prob", "lambda_softmax": 10.0}),
    *(("scan", {"cross_attn": way, "agg_func": pooling}) for way in ("t2i", "i2t") for pooling in ("LogSumExp", "Mean")),
]


def written(tmp_path, held):
    path = tmp_path / "model_best.pth.tar"
    write_published(path, held)
    return read_published(path)


def converted(tmp_path, kind, parts=None, **options):
    published = written(tmp_path, theirs.checkpoint(kind, parts, **options))
    return from_matcher(published, kind_of(published, "auto"), {})


def corpus():
    torch.manual_seed(4)
    images, captions = torch.tensor([3, 2, 6, 4]), torch.tensor([5, 3, 8])
    regions = Ragged(torch.randn(int(images.sum()), theirs.REGION), images)
    return regions, Ragged(torch.randint(0, theirs.VOCAB, (int(captions.sum()),)), captions)


def literal(kind, image, text, features, ids, options):
    if kind == "vsrn":
        return theirs.vsrn(image, text, features, ids)
    return getattr(theirs, kind)(image, text, features, ids, theirs.OPTIONS[kind] | options)


@pytest.mark.parametrize(("kind", "options"), SETTINGS)
def test_similarity_is_the_released_codes(tmp_path, kind, options):
    image, text = theirs.halves(kind, image_norm="data_name" in options)
    model = converted(tmp_path, kind, [image, text], **options).model
    regions, captions = corpus()
    with torch.no_grad():
        found = model.similarity(Images(regions, torch.zeros(len(regions.values), 7), None), captions)
    assert found.shape == (4, 3)
    wanted = torch.stack(
        [torch.stack([literal(kind, image, text, regions[i], captions[c], options) for c in range(3)]) for i in range(4)]
    )
    assert wanted.std() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["vsrn", "scan", "bfan"])
def test_round_trip(tmp_path, kind):
    held = theirs.checkpoint(kind)
    done = converted(tmp_path, kind)
    back = to_matcher(done.model, done.record)
    assert back.keys() == held.keys()
    for ours, half in zip(back["model"], held["model"]):
        assert list(ours) == list(half)
        assert all(ours[name].dtype == half[name].dtype and torch.equal(ours[name], half[name]) for name in half)
    assert vars(back["opt"]).items() >= theirs.OPTIONS[kind].items() and back["opt"].vocab_size == theirs.VOCAB
    again = from_matcher(written(tmp_path, back), kind, {}).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in done.model.state_dict().items() if "captioner" not in name)
    plain = to_matcher(done.model, None)["model"]  # without the record the same tensors
    assert all(torch.equal(plain[i][name], half[name]) for i, half in enumerate(held["model"]) for name in half)


def test_vsrns_captioner_is_the_released_one(tmp_path):
    """AOQ's third state, in evaluation: the loss of each pair, for captions that are told whole and a cut one."""
    states = [*theirs.halves("vsrn"), theirs.captioner()]
    done = converted(tmp_path, "vsrn", states, max_len=7, input_dropout_p=0.3, dim_hidden=5, dim_word=4, dim_vid=theirs.JOINT,
                     rnn_type="gru", bidirectional=0, rnn_dropout_p=0.5)  # fmt: skip
    model, config = done.model, done.model.config
    assert done.notes == [] and (config.caption_hidden, config.caption_word_size) == (5, 4)
    assert (config.caption_dropout, config.caption_pieces) == (0.3, 7) and model.captioner.dropout.p == 0.3
    regions, captions = corpus()  # captions of 5, 3 and 8 words
    pairs = Images(regions.select(torch.tensor([2, 0, 3])), torch.zeros(int(regions.lengths[[2, 0, 3]].sum()), 7), None)
    captions.values[:] = captions.values.clamp(min=4)  # no padding inside a caption
    with torch.no_grad():
        found = model.captioning_loss(model.encode_images(pairs), captions)
    wanted = [theirs.caption_loss(states[0], states[2], pairs.regions[p], captions[p], 7) for p in range(3)]
    assert float(found) == pytest.approx(float(sum(wanted)) / 3, rel=1e-5)


@pytest.mark.parametrize("data_name", ["coco_precomp", "f30k_precomp"])
def test_round_trip_with_the_captioner(tmp_path, data_name):
    options = {"data_name": data_name, "max_len": 60, "dim_hidden": 5, "dim_word": 4, "rnn_type": "gru"}
    states = [*theirs.halves("vsrn", image_norm=data_name == "f30k_precomp"), theirs.captioner()]
    states[2]["decoder.out.bias"] = states[2]["decoder.out.bias"].half()
    done = converted(tmp_path, "vsrn", states, **options)
    for record in (done.record, None):
        back = to_matcher(done.model, record)
        assert len(back["model"]) == 3 and vars(back["opt"]).items() >= options.items()
        for ours, state in zip(back["model"], states):
            assert ours.keys() == state.keys()
            assert all(torch.equal(ours[name].to(state[name].dtype), value) for name, value in state.items())
    kept = to_matcher(done.model, done.record)["model"]
    for ours, state in zip(kept, states):
        assert list(ours) == list(state) and all(ours[name].dtype == state[name].dtype for name in state)
    again = from_matcher(written(tmp_path, to_matcher(done.model, None)), "vsrn", {}).model.state_dict()
    assert again.keys() == done.model.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in done.model.state_dict().items())


def test_two_states_come_back_as_two_and_a_trained_captioner_as_a_third(tmp_path):
    done = converted(tmp_path, "vsrn", max_len=40)
    assert done.notes == ["initialised at random: the captioner, which the file does not carry"]
    assert done.model.config.caption_pieces == 40 and done.model.captioner is not None
    assert len(to_matcher(done.model, done.record)["model"]) == 2
    assert len(to_matcher(done.model, None)["model"]) == 3  # a run's folder has no record
    done.model.captioner = None
    assert len(to_matcher(done.model, None)["model"]) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rnn_type": "lstm"}, "captioner with rnn_type=lstm; only rnn_type=gru is built here"),
        ({"bidirectional": 1}, "captioner with bidirectional=1"),
        ({"dim_hidden": 512}, "says dim_hidden=512 and its captioner has 5"),
        ({"dim_word": 300}, "says dim_word=300 and its captioner has 4"),
        ({"input_dropout_p": 1.5}, r"input_dropout_p=1.5; give --option input_dropout_p=NUMBER"),
        ({"max_len": "long"}, "max_len=long; give --option max_len=NUMBER"),
    ],
)
def test_a_captioner_of_another_form_is_refused(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        converted(tmp_path, "vsrn", [*theirs.halves("vsrn"), theirs.captioner()], **options)


def test_a_captioner_that_does_not_fit_is_named(tmp_path):
    captioner = theirs.captioner()
    del captioner["decoder.attention.linear2.weight"]
    with pytest.raises(UserError, match=r"lacks 1 .* cap.decoder.attention.linear2.weight"):
        converted(tmp_path, "vsrn", [*theirs.halves("vsrn"), captioner])
    with pytest.raises(UserError, match=r"'captioner.region.weight' .* several sizes"):
        converted(tmp_path, "vsrn", [*theirs.halves("vsrn"), theirs.captioner(joint=9)])
    with pytest.raises(UserError, match=r"does not know .*cap\."):
        converted(tmp_path, "bfan", [*theirs.halves("bfan"), theirs.captioner()])


def test_vsrn_keeps_its_counts_where_the_file_has_none(tmp_path):
    """torch before 0.4.1 did not count batches."""
    image, text = theirs.halves("vsrn")
    old = {name: value for name, value in image.items() if not name.endswith("num_batches_tracked")}
    done = converted(tmp_path, "vsrn", [old, text])
    assert int(done.model.graph[0].norm.num_batches_tracked) == 0
    assert list(to_matcher(done.model, done.record)["model"][0]) == list(old)


def test_weight_normalisation_is_multiplied_out(tmp_path):
    image, text = theirs.halves("scan")
    plain = image["fc.weight"]
    split = {"fc.weight_g": plain.norm() * 3, "fc.weight_v": plain, "fc.bias": image["fc.bias"]}
    done = converted(tmp_path, "scan", [split, text], precomp_enc_type="weight_norm")
    assert torch.allclose(done.model.project.weight, 3 * plain) and "multiplied out" in done.notes[0]
    assert set(to_matcher(done.model, done.record)["model"][0]) == {"fc.weight", "fc.bias"}


def test_halves_that_were_trained_in_parallel(tmp_path):
    parts = [{f"module.{name}": value for name, value in half.items()} for half in theirs.halves("bfan")]
    assert torch.equal(converted(tmp_path, "bfan", parts).model.project.weight, parts[0]["module.fc.weight"])


def test_weight_normalisation_by_rows_is_refused(tmp_path):
    image, text = theirs.halves("scan")
    plain = image["fc.weight"]
    split = {"fc.weight_g": plain.norm(dim=1, keepdim=True), "fc.weight_v": plain, "fc.bias": image["fc.bias"]}
    with pytest.raises(UserError, match=r"img.fc.weight_g of shape \[8, 1\]"):
        converted(tmp_path, "scan", [split, text])


def test_numpy_numbers_beside_the_weights_are_read(tmp_path):
    held = theirs.checkpoint("bfan") | {"best_rsum": np.float64(431.2)}
    assert from_matcher(written(tmp_path, held), "bfan", {}).model.config.focal == "prob"


def test_options_come_from_the_command_where_the_file_has_none(tmp_path):
    published = written(tmp_path, {"model": theirs.halves("scan")})
    with pytest.raises(UserError, match=r"which matcher it is of; name it with --layout"):
        kind_of(published, "auto")
    with pytest.raises(UserError, match=r"does not carry the option agg_func .* --option agg_func=VALUE"):
        from_matcher(published, "scan", {})
    given = {"cross_attn": "t2i", "agg_func": "LogSumExp", "lambda_softmax": 9, "lambda_lse": 6}
    config = from_matcher(published, "scan", given).model.config
    assert (config.direction, config.pooling, config.lambda_softmax, config.lambda_lse) == ("t2i", "lse", 9.0, 6.0)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("scan", {"raw_feature_norm": "softmax"}, "raw_feature_norm=softmax; only raw_feature_norm=clipped_l2norm"),
        ("scan", {"bi_gru": False}, "bi_gru=False"),
        ("scan", {"agg_func": "Max"}, "agg_func=Max; only LogSumExp and Mean"),
        ("vsrn", {"measure": "order"}, "measure=order"),
        ("bfan", {"num_layers": 2}, "num_layers=2"),
    ],
)
def test_other_formulas_are_refused(tmp_path, kind, options, sentence):
    with pytest.raises(UserError, match=sentence):
        converted(tmp_path, kind, **options)


def test_a_half_that_does_not_fit_is_named(tmp_path):
    image, text = theirs.halves("vsrn")
    del image["Rs_GCN_3.theta.bias"]
    with pytest.raises(UserError, match=r"lacks 1 .* img.Rs_GCN_3.theta.bias"):
        converted(tmp_path, "vsrn", [image, text])
    image, text = theirs.halves("bfan")
    with pytest.raises(UserError, match=r"does not know .* txt.extra"):
        converted(tmp_path, "bfan", [image, text | {"extra": torch.ones(1)}])
    text["embed.weight"] = torch.ones(theirs.VOCAB, theirs.WORD + 1)
    with pytest.raises(UserError, match=r"text.gru.weight_ih_l0.* several sizes"):
        converted(tmp_path, "bfan", [image, text])


def test_the_papers_vsrn_is_not_written_for_code_that_computes_another(tmp_path):
    model = VSRN(VsrnConfig(vocab_size=9, region_dim=4, embed_size=8, word_size=4, caption_hidden=0))
    with pytest.raises(UserError, match="column_norm false"):
        to_matcher(model, None)


@pytest.mark.parametrize(("norms", "sentence"), [((True, True), "both input_norm"), ((False, False), "neither input_norm")])
def test_norms_that_the_released_code_does_not_have_are_not_written_for_it(norms, sentence):
    sizes = dict(vocab_size=9, region_dim=4, embed_size=8, word_size=4, caption_hidden=0)
    with pytest.raises(UserError, match=sentence):
        to_matcher(VSRN(VsrnConfig(**sizes, column_norm=True, input_norm=norms[0], image_norm=norms[1])), None)


def test_the_namespace_of_options_survives_the_way_back(tmp_path):
    done = converted(tmp_path, "bfan", vocab_path=None, weird=argparse.Namespace(a=1), max_violation=True)
    assert done.record["options"]["max_violation"] is True and "weird" not in done.record["options"]
    assert to_matcher(done.model, done.record)["opt"].max_violation is True
