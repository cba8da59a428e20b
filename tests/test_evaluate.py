"""tagsds-evaluate from end to end on a random model, in one process and in two; and what the user is told."""

import json

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.evaluators.edits import score_edits
from tagsds.evaluators.metrics import recalls
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.evaluators.protocol import first_captions
from tagsds.evaluators.recall import shared_captions
from tagsds.models import UniterModel
from tagsds.models.load import ensure_rank_head, load_model
from tagsds.models.uniter import Layout
from tagsds.ranks import World
from tagsds.scoring.scorer import Scorer
from tests import tiny_corpus as tiny
from tests.launch import run_two


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_shards(tmp_path_factory.mktemp("corpus") / "shards")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "tags"
    tiny.write_checkpoint(run / "export")
    return run


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    return tiny.write_edits(tmp_path_factory.mktemp("edits") / "test" / "object.json").parent


def call(*arguments) -> None:
    program.main([str(a) for a in arguments])


def fails(capsys, *arguments) -> str:
    """The sentence on stderr of a command that ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def score_plainly(model: UniterModel, bank, captions) -> torch.Tensor:
    """The score matrix, an image a forward, every state computed: the plainest way."""
    from tagsds.data.pairs import Pairs

    scores = torch.empty(bank.num_images, len(captions))
    every = torch.arange(len(captions))
    for i in range(bank.num_images):
        pairs = Pairs(bank.text_table(captions), bank.image_table(torch.tensor([i])), every, torch.zeros_like(every))
        scores[i] = model.score(model(pairs)[Layout.of(pairs).cls()])
    return scores


def test_end_to_end(corpus, run_folder, edits, capsys):
    call("--checkpoint", run_folder, "--data", corpus, "--pairs", edits)
    printed = capsys.readouterr().out
    results = json.loads((run_folder / "results-test.json").read_text())

    bank, _ = load_bank(corpus, "test")
    captions = first_captions(bank, 8, 5)
    assert len(captions) == 40 and bank.num_captions == 44  # the sixth captions are left out
    with torch.no_grad():
        scores = score_plainly(load_model(run_folder / "export"), bank, captions)
    assert results["recalls"] == pytest.approx(recalls(scores, bank.image_of_caption[captions]).as_dict())
    assert (results["images"], results["captions"], results["split"]) == (8, 40, "test")
    assert results["pairs_scored"] == 8 * 40 + 2 * 8 and results["seconds"] > 0
    assert results["edits"]["object"]["pairs"] == 8
    assert 0 <= results["edits"]["object"]["accuracy"] <= 100

    assert results["shared_captions"] == 0
    bank.texts = list(bank.texts)
    bank.texts[int(captions[-1])] = bank.texts[0]
    assert shared_captions(bank, captions) == 2

    first = results["examples"][0]
    assert first["caption"] == tiny.captions_of(0)[0] and first["image"] == tiny.key(0)
    assert first["score"] == pytest.approx(float(scores[0, 0]), abs=1e-4)
    assert [top["image"] for top in first["top"]] == [bank.keys[i] for i in scores[:, 0].argsort(descending=True)[:5]]
    histogram = results["score_histogram"]
    assert sum(histogram["true"]) == 40 and sum(histogram["other"]) == 7 * 40
    assert len(histogram["edges"]) == len(histogram["true"]) + 1

    source = results["provenance"]
    assert source["dtype"] == "fp32" and source["head"] == "rank" and source["ranks"] == 1
    assert len(source["weights_sha256"]) == 64 and source["checkpoint"].endswith("export")
    assert "R@10" in printed and "object" in printed and f"{results['recalls']['rsum']:.1f}" in printed


def test_edits_are_scored_with_their_own_images(corpus, run_folder, edits):
    bank, _ = load_bank(corpus, "test")
    model, words = load_model(run_folder / "export"), tiny.tokenizer()
    (kind,) = read_pairs([edits], bank.keys)
    true, false = score_edits(Scorer(model), bank, words, kind.pairs, World())
    captions = first_captions(bank, 8, 1)  # the true captions are the images' first ones
    with torch.no_grad():
        expected = score_plainly(model, bank, captions).diagonal()
    torch.testing.assert_close(true, expected, atol=1e-5, rtol=1e-5)
    assert (true != false).all()


def test_first_and_all_captions(corpus, run_folder, edits, tmp_path):
    output = tmp_path / "deep" / "r.json"
    arguments = ["--checkpoint", run_folder / "export", "--data", corpus, "--first", 3, "--captions-per-image", 0]
    call(*arguments, "--output", output)
    alone = json.loads(output.read_text())
    assert (alone["images"], alone["captions"], alone["first"]) == (3, 5 + 6 + 5, 3)
    call(*arguments, "--output", output, "--pairs", edits, "--max-tokens", 40)  # edits still see all eight images
    both = json.loads(output.read_text())
    assert both["edits"]["object"]["pairs"] == 8
    assert both["recalls"] == alone["recalls"]


def test_only_the_edits(corpus, run_folder, edits, tmp_path):
    output = tmp_path / "r.json"
    call("--checkpoint", run_folder, "--data", corpus, "--pairs", edits, "--no-retrieval", "--output", output)
    results = json.loads(output.read_text())
    assert "recalls" not in results and results["edits"]["object"]["pairs"] == 8


def test_bf16_is_near(corpus, run_folder, tmp_path):
    call("--checkpoint", run_folder, "--data", corpus, "--output", tmp_path / "a.json")
    call("--checkpoint", run_folder, "--data", corpus, "--output", tmp_path / "b.json", "--dtype", "bf16")
    exact, coarse = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert coarse["provenance"]["dtype"] == "bf16"
    assert coarse["examples"][0]["score"] == pytest.approx(exact["examples"][0]["score"], abs=0.3)


def test_two_processes_give_the_same_numbers(corpus, run_folder, edits, tmp_path):
    options = ["--checkpoint", run_folder, "--data", corpus, "--pairs", edits, "--first", "7"]
    call(*options, "--output", tmp_path / "one.json")
    # Run as a file, as the launchers do: its folder must not stand first among the imports.
    printed = run_two(program.__file__, *options, "--output", tmp_path / "two.json")
    assert "R@1" in printed[0] and printed[1] == ""  # only the first rank prints
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert two["provenance"]["ranks"] == 2
    for part in ("recalls", "edits", "pairs_scored", "images", "captions"):
        assert one[part] == two[part]
    for a, b in zip(one["examples"], two["examples"], strict=True):
        assert a["rank"] == b["rank"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_a_pretraining_checkpoint_is_scored_by_its_itm_head(corpus, tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "export", trained_heads=["itm", "mlm"])
    model = load_model(folder)
    with pytest.warns(UserWarning, match="itm head's log odds"):
        assert ensure_rank_head(model) == "itm"
    states = torch.randn(5, 16)
    with torch.no_grad():
        match = torch.softmax(model.itm(model.pooler(states)), dim=1)[:, 1]
        torch.testing.assert_close(torch.sigmoid(model.score(states)), match)
    with pytest.warns(UserWarning, match="itm head"):
        call("--checkpoint", tmp_path, "--data", corpus)
    assert json.loads((tmp_path / "results-test.json").read_text())["provenance"]["head"] == "itm"


def test_a_trained_rank_head_is_left_alone(run_folder):
    model = load_model(run_folder / "export")
    before = model.rank.weight.clone()
    assert ensure_rank_head(model) == "rank"
    assert torch.equal(model.rank.weight, before)


def test_a_checkpoint_without_a_scoring_head(corpus, tmp_path, capsys):
    tiny.write_checkpoint(tmp_path / "export", trained_heads=["mlm"])
    assert "names no trained head" in fails(capsys, "--checkpoint", tmp_path, "--data", corpus)


def test_a_checkpoint_of_another_width(corpus, tmp_path, capsys):
    tiny.write_checkpoint(tmp_path / "export", region_dim=5)
    message = fails(capsys, "--checkpoint", tmp_path, "--data", corpus)
    assert message.count("\n") == 1  # one sentence
    assert "a checkpoint of another width" in message and "region_dim 5" in message and "feature_dim 8" in message


def test_a_checkpoint_of_another_vocabulary(corpus, tmp_path, capsys):
    words = [*tiny.WORDS[:-1], "zebra"]
    tiny.write_checkpoint(tmp_path / "export", words)
    message = fails(capsys, "--checkpoint", tmp_path, "--data", corpus)
    assert "another vocabulary" in message and "--tokenizer" in message
    (tmp_path / "export" / "tokenizer.json").unlink()
    with pytest.warns(UserWarning, match=r"no tokenizer\.json"):
        call("--checkpoint", tmp_path, "--data", corpus)
    tiny.write_checkpoint(tmp_path / "short" / "export", tiny.WORDS[:-2])
    (tmp_path / "short" / "export" / "tokenizer.json").unlink()
    assert "vocab_size" in fails(capsys, "--checkpoint", tmp_path / "short", "--data", corpus)


def test_a_caption_longer_than_the_positions(corpus, edits, tmp_path, capsys):
    tiny.write_checkpoint(tmp_path / "export", max_position_embeddings=6)
    message = fails(capsys, "--checkpoint", tmp_path, "--data", corpus)
    assert "max_position_embeddings is 6; pack the corpus again with --max-caption-pieces SPLIT=6 " in message
    tiny.write_checkpoint(tmp_path / "export", max_position_embeddings=4)
    message = fails(capsys, "--checkpoint", tmp_path, "--data", corpus, "--pairs", edits, "--no-retrieval")
    assert "of --pairs has 5 word pieces" in message


def test_a_missing_weight_is_an_error(tmp_path):
    from safetensors.torch import load_file, save_file

    file = tiny.write_checkpoint(tmp_path / "export") / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k != "rank.weight"}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*rank\.weight"):
        load_model(tmp_path / "export")
    file.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(tmp_path / "export")


def test_bad_checkpoint_folders(corpus, tmp_path, capsys):
    assert "does not exist" in fails(capsys, "--checkpoint", tmp_path / "no", "--data", corpus)
    assert "neither config.json nor" in fails(capsys, "--checkpoint", tmp_path, "--data", corpus)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "model_type 'bert'" in fails(capsys, "--checkpoint", tmp_path, "--data", corpus)
    (tmp_path / "config.json").write_text("{")
    assert "is not valid JSON" in fails(capsys, "--checkpoint", tmp_path, "--data", corpus)


def test_bad_options(corpus, run_folder, tmp_path, capsys):
    base = ["--checkpoint", run_folder, "--data", corpus]
    assert "no split 'tset'" in fails(capsys, *base, "--split", "tset")
    assert "more than the 8 images" in fails(capsys, *base, "--first", 9)
    assert "coco-folds needs 5000 images" in fails(capsys, *base, "--coco-folds")
    assert "--first is 0" in fails(capsys, *base, "--first", 0)
    assert "nothing to do" in fails(capsys, *base, "--no-retrieval")
    assert "is a folder; name a file in it" in fails(capsys, *base, "--output", tmp_path)
    (tmp_path / "file").touch()
    assert "is no folder that can be written" in fails(capsys, *base, "--output", tmp_path / "file" / "r.json")
    path = tiny.write_edits(tmp_path / "obj.json", images=9)
    assert "1 of 9" in fails(capsys, *base, "--pairs", path)
    call(*base, "--pairs", path, "--skip-missing-pairs", "--output", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["edits"]["obj"] | {"accuracy": 0} == {
        "accuracy": 0,
        "pairs": 8,
        "skipped": 1,
    }


def test_further_ranks_leave_the_word_to_the_first(corpus, tmp_path, capsys, monkeypatch):
    """The launcher ends them while they wait; what went wrong on one of them alone is said after that."""
    waited = []
    monkeypatch.setattr("time.sleep", lambda seconds: waited.append(capsys.readouterr().err))
    monkeypatch.setenv("RANK", "1")
    assert "neither config.json nor" in fails(capsys, "--checkpoint", tmp_path, "--data", corpus)
    assert waited == [""]
