"""UNITER's and TAGS' checkpoints: they compute here what their formulas say, and go back as they came."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from tagsds.data.pairs import Images, Pairs, geometry_of
from tagsds.data.ragged import Ragged
from tagsds.errors import UserError
from tagsds.models.published.files import Published, read_published, write_published
from tagsds.models.published.uniter import HEADS, from_uniter, to_uniter
from tagsds.models.uniter import Layout
from tests.models import published_uniter as theirs

SPELLINGS = [
    {}, {"prefix": "bert."}, {"prefix": ""}, {"module": "module."}, {"old_norm": True},
    {"prefix": "bert.", "module": "module.", "old_norm": True},
]  # fmt: skip


def held(state, tmp_path):
    return Published(tmp_path / "uniter.pt", state)


def same(a, b):
    return list(a) == list(b) and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def test_the_forward_is_the_formulas(tmp_path):
    """Every output of a ragged batch, some regions hidden, through a file on disk."""
    state = theirs.state_dict()
    write_published(tmp_path / "uniter.pt", state)
    done = from_uniter(read_published(tmp_path / "uniter.pt"), {}, None)
    assert done.found == list(HEADS) and not done.begun
    model = done.model
    assert model.config.num_attention_heads == 2 and sorted(model.config.trained_heads) == sorted(HEADS)
    torch.manual_seed(1)
    texts, images, pairs = [5, 2, 9], [3, 1, 6], [(0, 0), (1, 2), (2, 1), (2, 2), (0, 2)]
    words = Ragged(torch.randint(0, 50, (sum(texts),)), torch.tensor(texts))
    regions = Ragged(torch.randn(sum(images), 20), torch.tensor(images))
    corners = torch.rand(sum(images), 2, 2).sort(dim=1).values.flatten(1)
    masked = torch.rand(sum(images)) < 0.4
    assert masked.any() and not masked.all()
    batch = Pairs(words, Images(regions, geometry_of(corners), masked), *torch.tensor(pairs).T)
    with torch.no_grad():
        x = model(batch)
        layout = Layout.of(batch)
        for p, (text, image) in enumerate(pairs):
            rows = slice(int(regions.offsets[image]), int(regions.offsets[image + 1]))
            wanted = theirs.forward(state, words[text], regions.values[rows], corners[rows], masked[rows], heads=2)
            states = x[layout.starts[p] : layout.starts[p + 1]]
            pooled = model.pooler(states[:1])
            found = {"joint": states, "pooled": pooled, "itm": model.itm(pooled), "rank": model.rank(pooled)}
            found |= {name: getattr(model, name)(states) for name in ("mlm", "discriminate", "correct", "region_class")}
            found["region_feature"] = model.region_feature(states, model.image_embedding.feature.weight)
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                assert torch.allclose(found[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())), name
            assert torch.allclose(model.score(states[:1]), wanted["rank"][:, 0], atol=1e-5)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_spelling_means_the_same_and_goes_back_as_it_came(tmp_path, spelling, dtype):
    state = theirs.state_dict(dtype=dtype)
    plain = from_uniter(held(state, tmp_path), {}, None).model.state_dict()
    spelt = theirs.respelt(state, **spelling)
    done = from_uniter(held(spelt, tmp_path), {}, None)
    ours = done.model.state_dict()
    assert ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in ours)
    assert all(value.dtype == torch.float32 for value in ours.values())
    assert same(to_uniter(done.model, done.record), spelt)
    usual = to_uniter(done.model, None)  # without the record: UNITER's own spelling, in float32
    assert usual.keys() == state.keys() and all(torch.equal(usual[name], state[name].float()) for name in usual)


@pytest.mark.parametrize(("width", "layers", "inner"), [(768, 12, 3072), (1024, 24, 4096)], ids=["base", "large"])
def test_round_trip_of_the_published_sizes(tmp_path, width, layers, inner):
    """Half precision with the vocabulary padded, as UNITER's own training saves it."""
    state = theirs.state_dict(
        dtype=torch.float16,
        std=0.02,
        vocab=29000,
        width=width,
        layers=layers,
        inner=inner,
        positions=512,
        region_dim=2048,
        classes=1601,
    )
    for name, value in state.items():
        if name.endswith(("word_embeddings.weight", "predictions.bias")):
            value[28996:] = 0
    done = from_uniter(held(state, tmp_path), {}, 28996)
    config = done.model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (
        28996,
        width,
        layers,
        inner,
    )
    assert (config.num_attention_heads, config.region_dim, config.num_region_classes) == (width // 64, 2048, 1601)
    assert done.record["vocabulary_padding"] == 4
    assert same(to_uniter(done.model, done.record), state)


def test_missing_heads_begin_as_the_method_says(tmp_path):
    """UNITER's pre-training file: no rank, no discrimination, no correction (method, section 3)."""
    state = theirs.without(theirs.state_dict(), "rank_output", "disc_output", "correction_output")
    done = from_uniter(held(state, tmp_path), {}, None)
    model = done.model
    assert model.config.trained_heads == ["itm", "mlm", "region_class", "region_feature"]
    assert done.begun == ["rank <- itm", "discriminate <- itm", "correct <- mlm"]
    assert torch.equal(model.rank.weight, state["itm_output.weight"][1:]) and torch.equal(
        model.rank.bias, state["itm_output.bias"][1:]
    )
    assert torch.equal(model.discriminate.weight, state["itm_output.weight"])
    assert torch.equal(model.correct.decoder.bias, state["cls.predictions.bias"])
    assert torch.equal(model.correct.transform.dense.weight, state["cls.predictions.transform.dense.weight"])
    assert model.correct.decoder.weight is model.text_embedding.word.weight
    assert same(to_uniter(model, done.record), state)  # heads that nobody has trained are not written


def test_a_head_trained_since_follows_in_the_files_precision(tmp_path):
    state = theirs.without(theirs.state_dict(dtype=torch.float16), "rank_output", "feat_regress.weight")
    done = from_uniter(held(theirs.respelt(state, prefix="bert."), tmp_path), {}, None)
    done.model.config.trained_heads.append("rank")
    back = to_uniter(done.model, done.record)
    assert set(back) == {*theirs.respelt(state, prefix="bert."), "rank_output.weight", "rank_output.bias"}
    assert all(value.dtype == torch.float16 for value in back.values())
    assert to_uniter(done.model, None, torch.bfloat16)["rank_output.weight"].dtype == torch.bfloat16


def test_bert_fills_the_text_half(tmp_path):
    """transformers' own BERT, saved and read; the states of a text alone are equal."""
    torch.manual_seed(0)
    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=40,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=36,
            max_position_embeddings=12,
        )
    ).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    bert.save_pretrained(tmp_path)
    published = read_published(tmp_path)
    done = from_uniter(published, {"num_attention_heads": 4, "region_dim": 10, "num_region_classes": 7}, None)
    assert done.record["layout"] == "bert" and done.found == ["mlm"] and done.begun == ["correct <- mlm"]
    assert "initialised at random: the image half" in done.notes and "initialised at random: the pooler" in done.notes
    assert done.model.config.region_dim == 10 and done.model.config.num_region_classes == 7
    ids = torch.tensor([2, 7, 9, 3, 11])
    nothing = Images(Ragged(torch.zeros(0, 10), torch.tensor([0])), torch.zeros(0, 7), None)
    alone = Pairs(Ragged(ids, torch.tensor([5])), nothing, torch.tensor([0]), torch.tensor([0]))
    with torch.no_grad():
        states = done.model(alone)
        wanted = bert(ids[None], output_hidden_states=True)
        assert torch.allclose(states, wanted.hidden_states[-1][0], atol=1e-5)
        assert torch.allclose(done.model.mlm(states), wanted.logits[0], atol=1e-5)
    back = to_uniter(done.model, done.record)  # in UNITER's spelling throughout, whatever BERT's was
    assert {name.split(".")[0] for name in back} == {"uniter", "cls"} and "uniter.img_embeddings.img_linear.weight" in back


def test_a_conversion_is_repeatable(tmp_path):
    """What the file lacks begins alike each time, whatever was drawn before."""
    state = theirs.without(theirs.state_dict(), "feat_regress", "region_classifier", "uniter.img_embeddings")
    one = from_uniter(held(state, tmp_path), {}, None).model.state_dict()
    torch.rand(3)
    two = from_uniter(held(state, tmp_path), {}, None).model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


WIDE = theirs.state_dict(width=192)["uniter.encoder.layer.1.output.dense.weight"]
LACKS = "lacks 1 of the keys its layout has .first: "
FAULTS = [  # (tensors to add or replace, or None to remove; sizes given; pieces of the tokenizer; the sentence)
    ({"uniter.encoder.layer.1.attention.self.key.bias": None}, {}, None, LACKS + "uniter.encoder.layer.1.attention.self.key.bias"),
    ({"itm_output.bias": None}, {}, None, LACKS + "itm_output.bias"),
    ({"vqa_output.0.weight": torch.ones(1)}, {}, None, "does not know .*vqa_output.0.weight.* --ignore"),
    ({"uniter.encoder.layer.1.output.dense.weight": WIDE}, {}, None, "layers.1.contract.weight.* several sizes"),
    ({"cls.predictions.decoder.weight": torch.ones(50, 128)}, {}, None, "cls.predictions.decoder.weight .* tied"),
    ({"uniter.pooler.dense.weight": torch.ones(128, 128).int()}, {}, None, "uniter.pooler.dense.weight in .* holds torch.int32"),
    ({"itm_output.bias": torch.tensor([0.0, float("nan")])}, {}, None, "itm_output.bias in .* not finite"),
    ({"uniter.img_embeddings.mask_embedding.weight": torch.ones(20)}, {}, None, "mask_embedding.weight in .* shape"),
    ({"uniter.encoder.layer.0.attention.self.key.weight": torch.ones(128)}, {}, None, "self.query.weight in .* shape"),
    ({"pooler.dense.bias": torch.ones(128)}, {}, None, "uniter.pooler.dense.bias in two spellings"),
    ({}, {}, 30, "has 50 word pieces and the tokenizer 30"),
    ({}, {}, 60, "has 50 word pieces and the tokenizer 60"),
    ({}, {}, 48, "has 50 word pieces and the tokenizer 48"),
    ({}, {"hidden_size": 768}, None, "has hidden_size 128, the config says 768"),
    ({}, {"num_attention_heads": 5}, None, "number of attention heads"),
    ({}, {"num_attention_heads": "two"}, None, "num_attention_heads 'two', which is no number"),
    ({}, {"num_attention_heads": 2.5}, None, "num_attention_heads 2.5, which cannot be"),
    ({}, {"hidden_dropout_prob": 3}, None, "hidden_dropout_prob 3, which cannot be"),
    ({}, {"hidden_act": "relu"}, None, "hidden_act 'relu'"),
    ({"uniter.embeddings.word_embeddings.weight": None}, {}, None, "no word embeddings .* --layout"),
    ({"uniter.embeddings.position_embeddings.weight": None}, {}, None, "lacks uniter.embeddings.position_embeddings.weight"),
]


@pytest.mark.parametrize(("change", "given", "vocabulary", "sentence"), FAULTS)
def test_a_file_that_does_not_fit_gets_one_sentence(tmp_path, change, given, vocabulary, sentence):
    state = {name: value for name, value in (theirs.state_dict() | change).items() if value is not None}
    with pytest.raises(UserError, match=sentence) as caught:
        from_uniter(held(state, tmp_path), given, vocabulary)
    assert "\n" not in str(caught.value)


def test_padding_that_was_trained_is_not_cut_off(tmp_path):
    state = theirs.state_dict(vocab=56)
    state["uniter.embeddings.word_embeddings.weight"][50:] = 0
    with pytest.raises(UserError, match="has 56 word pieces and the tokenizer 50"):  # biases behind the vocabulary are not zero
        from_uniter(held(state, tmp_path), {}, 50)
    for head in ("cls", "correction_output"):
        state[f"{head}.predictions.bias"][50:] = 0
    assert same(to_uniter((done := from_uniter(held(state, tmp_path), {}, 50)).model, done.record), state)


def test_keys_may_be_left_out_by_name(tmp_path):
    state = theirs.state_dict() | {"vqa_output.0.weight": torch.ones(1), "uniter.embeddings.position_ids": torch.arange(24)}
    done = from_uniter(held(state, tmp_path), {}, None, ("vqa_output",))
    assert any("vqa_output.0.weight" in note and "position_ids" in note for note in done.notes)
    assert set(to_uniter(done.model, done.record)) == set(theirs.state_dict())


def test_a_row_that_is_never_used_is_named(tmp_path):
    state = theirs.state_dict()
    state["uniter.img_embeddings.mask_embedding.weight"] = torch.ones(2, 20)
    done = from_uniter(held(state, tmp_path), {}, None)
    assert any("row 0" in note for note in done.notes) and torch.equal(done.model.image_embedding.mask, torch.ones(20))
