"""A matcher's scores: in blocks, as pairs and as a matrix, against one comparison of everything."""

import json

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.pairs import Pairs
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.protocol import first_captions
from tagsds.models.load import load_model, read_config, read_encoder_config
from tagsds.reporting.table import results_table
from tagsds.scoring import matcher_scorer
from tagsds.scoring.matcher_scorer import MatcherScorer
from tagsds.scoring.registry import scorer_of
from tagsds.scoring.scorer import Scorer, score_listed, score_matrix
from tests import stand_in
from tests import tiny_corpus as tiny


@pytest.fixture(scope="module")
def bank(corpus):
    return load_bank(corpus, "test")[0]


def plainly(model, bank, images, captions):
    """One image with one caption at a time, so that nothing is padded: sums written out."""
    out = torch.empty(len(images), len(captions))
    for row, image in enumerate(images.tolist()):
        regions = (model.regions.weight @ bank.regions[image].float().T).T + model.regions.bias
        for column, caption in enumerate(captions.tolist()):
            words = model.words.weight[bank.tokens[caption].long()]
            if model.config.fragments:
                cosines = torch.nn.functional.cosine_similarity(regions[None], words[:, None], dim=2)
                out[row, column] = cosines.amax(1).mean()
            else:
                out[row, column] = torch.cosine_similarity(regions.sum(0), words.sum(0), dim=0)
    return out


@pytest.mark.parametrize("fragments", [True, False])
@pytest.mark.parametrize(("max_tokens", "rows", "resident"), [(None, 128, None), (1, 3, 2), (40, 5, 3), (333, 1, 100)])
def test_the_matrix_and_the_pairs_equal_plain_sums(bank, monkeypatch, fragments, max_tokens, rows, resident):
    monkeypatch.setattr(matcher_scorer, "ROWS", rows)
    model = stand_in.matcher(fragments=fragments).train()  # dropout must not show, nor the mode change
    scorer = MatcherScorer(model, max_tokens)
    images, captions = torch.tensor([4, 0, 7, 5, 1]), torch.tensor([9, 40, 2, 2, 30, 13, 0])
    expected = plainly(model, bank, images, captions).detach()
    matrix = score_matrix(scorer, bank, images, captions, progress=False, block_images=resident)
    assert matrix.dtype == torch.float32 and not matrix.requires_grad and model.training
    torch.testing.assert_close(matrix, expected, atol=1e-6, rtol=1e-5)
    assert expected.std() > 0.05  # or equality would say little

    text_of_pair, image_of_pair = torch.tensor([6, 0, 3, 3, 1, 5]), torch.tensor([0, 4, 2, 2, 1, 3])
    pairs = Pairs(bank.text_table(captions), bank.image_table(images), text_of_pair, image_of_pair)
    torch.testing.assert_close(scorer(pairs), expected[image_of_pair, text_of_pair], atol=1e-6, rtol=1e-5)
    assert scorer(pairs.subset(torch.tensor([], dtype=torch.int64))).shape == (0,)


@pytest.mark.parametrize("block_pairs", [1, 4, 1000])
def test_listed_pairs(bank, block_pairs):
    scorer = MatcherScorer(stand_in.matcher())
    images, captions = torch.tensor([0, 0, 3, 3, 3, 7]), torch.tensor([5, 1, 5, 39, 2, 5])
    scores = score_listed(scorer, bank, images, captions, progress=False, block_pairs=block_pairs)
    expected = scorer.matrix(bank, torch.arange(8), torch.arange(44), progress=False)[images, captions]
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    assert score_listed(scorer, bank, images[:0], captions[:0]).shape == (0,)


def test_each_side_is_encoded_once(bank, monkeypatch):
    monkeypatch.setattr(matcher_scorer, "ROWS", 3)
    model = stand_in.matcher()
    seen = {"images": 0, "captions": 0, "widest": 0}
    encode_images, encode_captions, compare = model.encode_images, model.encode_captions, model.compare

    def count_images(images):
        seen["images"] += len(images)
        return encode_images(images)

    def count_captions(captions):
        seen["captions"] += len(captions)
        return encode_captions(captions)

    def measure(images, captions):
        tokens = len(images) * len(captions) * (images.vectors.shape[1] + captions.vectors.shape[1])
        seen["widest"] = max(seen["widest"], tokens)
        return compare(images, captions)

    monkeypatch.setattr(model, "encode_images", count_images)
    monkeypatch.setattr(model, "encode_captions", count_captions)
    monkeypatch.setattr(model, "compare", measure)
    MatcherScorer(model, max_tokens=60).matrix(bank, torch.arange(8), torch.arange(44), progress=False)
    assert (seen["images"], seen["captions"]) == (8, 44) and 30 < seen["widest"] <= 60


def test_bf16_is_near(bank):
    model = stand_in.matcher()
    images, captions = torch.arange(8), torch.arange(44)
    exact, coarse = (MatcherScorer(model, dtype=d).matrix(bank, images, captions, False) for d in (None, torch.bfloat16))
    assert coarse.dtype == torch.float32 and 1e-5 < (exact - coarse).abs().max() < 0.03


def test_scorers_by_kind():
    from tagsds.models import UniterConfig, UniterModel

    small = UniterConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    encoder = scorer_of(UniterModel(small), 77, torch.bfloat16)
    assert isinstance(encoder, Scorer) and (encoder.max_tokens, encoder.dtype) == (77, torch.bfloat16)
    ours = scorer_of(stand_in.matcher(), 77, torch.bfloat16)
    assert isinstance(ours, MatcherScorer) and (ours.max_tokens, ours.dtype) == (77, torch.bfloat16)


def test_a_matcher_is_evaluated_end_to_end(corpus, bank, tmp_path, capsys):
    stand_in.write_matcher(tmp_path / "run" / "export")
    edits = tiny.write_edits(tmp_path / "object.json")
    program.main([*map(str, ["--checkpoint", tmp_path / "run", "--data", corpus, "--pairs", edits])])
    results = json.loads((tmp_path / "run" / "results-test.json").read_text())
    captions = first_captions(bank, 8, 5)
    scores = plainly(load_model(tmp_path / "run" / "export"), bank, torch.arange(8), captions).detach()
    assert results["recalls"] == pytest.approx(recalls(scores, bank.image_of_caption[captions]).as_dict())
    assert results["provenance"]["head"] == "similarity" and results["edits"]["object"]["pairs"] == 8
    assert results_table(results) in capsys.readouterr().out


def test_loading(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = stand_in.write_matcher(tmp_path / "export", fragments=False)
    assert read_config(folder).fragments is False
    ours, loaded = stand_in.matcher(fragments=False).state_dict(), load_model(folder)
    assert isinstance(loaded, stand_in.StandInMatcher) and not loaded.training
    assert all(torch.equal(value, ours[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(UserError, match="'tagsds_stand_in', a matcher, where 'tagsds_uniter' is needed"):
        read_encoder_config(folder)
    file = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "regions.bias"}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*regions\.bias"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match=r"'bert', not one of tagsds_uniter, .*tagsds_scan"):
        read_config(folder)
