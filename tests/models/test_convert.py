"""tagsds-convert as a user runs it: what it writes, what it says, and one sentence for a file that is not right."""

import json
import os
import sys

import pytest
import torch
from transformers import AutoModel

from tagsds.data.wordpiece import build_tokenizer
from tagsds.errors import UserError
from tagsds.models import convert
from tagsds.models.card import read_card
from tagsds.models.load import load_model
from tagsds.models.published.files import write_published
from tests.models import published_matchers, published_uniter
from tests.models.published_uniter import without


def pieces(count=50):
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(count - 5))]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces()) + "\n")
    return path


@pytest.fixture
def uniter(tmp_path):
    path = tmp_path / "uniter-base.pt"
    write_published(path, without(published_uniter.state_dict(), "rank_output", "disc_output", "correction_output"))
    return path


def run(*arguments):
    convert.run([str(a) for a in arguments])


def test_a_pretrained_encoder_becomes_a_folder_and_a_file_again(tmp_path, uniter, vocabulary, capsys):
    out, back = tmp_path / "pretrained" / "uniter", tmp_path / "back.pt"
    run(uniter, "--out", out, "--tokenizer", vocabulary)
    said = capsys.readouterr().out
    assert "uniter layout, 2 layers of 128, 2 heads of 64, 50 word pieces, regions of 20" in said
    assert "heads found: itm, mlm, region_feature, region_class" in said
    assert "heads begun: rank <- itm, discriminate <- itm, correct <- mlm" in said and f"init={out}" in said
    model = AutoModel.from_pretrained(out)
    assert model.config.trained_heads == ["itm", "mlm", "region_class", "region_feature"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "published.json", "README.md", "card.json"} <= {
        path.name for path in out.iterdir()
    }
    card = (out / "README.md").read_text()
    assert "| file | uniter-base.pt |" in card and "| layout | uniter |" in card and card.startswith("---\nlibrary_name")
    run(out, "--out", back)
    assert "in the uniter layout" in capsys.readouterr().out
    state, original = torch.load(back, weights_only=True), torch.load(uniter, weights_only=True)
    assert list(state) == list(original) and all(torch.equal(state[name], original[name]) for name in state)
    run(out, "--out", tmp_path / "half.pt", "--dtype", "fp16")
    assert {v.dtype for v in torch.load(tmp_path / "half.pt", weights_only=True).values()} == {torch.float16}


def test_a_matcher_becomes_a_folder_and_a_file_again(tmp_path, capsys):
    words = ["<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(published_matchers.VOCAB - 4))]
    (tmp_path / "vocab.json").write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    path, out, back = tmp_path / "model_best.pth.tar", tmp_path / "bfan", tmp_path / "back.pth.tar"
    held = published_matchers.checkpoint("bfan")
    write_published(path, held)
    run(path, "--out", out, "--vocabulary", tmp_path / "vocab.json")
    assert "bfan layout, joint space of 8, 23 words, regions of 10" in capsys.readouterr().out
    assert load_model(out).config.focal == "prob" and (out / "tokenizer.json").is_file()
    run(out, "--out", back)
    with torch.serialization.safe_globals([type(held["opt"])]):
        again = torch.load(back, weights_only=True)
    assert all(torch.equal(again["model"][0][name], value) for name, value in held["model"][0].items())
    assert again["opt"].focal_type == "prob"


def test_a_bert_folder_brings_its_tokenizer_and_config(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=30)
    BertModel(BertConfig(**sizes, max_position_embeddings=16)).save_pretrained(tmp_path / "bert")
    build_tokenizer(pieces()).save_pretrained(tmp_path / "bert")
    run(tmp_path / "bert", "--out", tmp_path / "out", "--region-dim", 12)
    config = load_model(tmp_path / "out").config
    assert (config.num_attention_heads, config.region_dim, config.num_region_classes) == (3, 12, 1601)
    assert config.trained_heads == [] and (tmp_path / "out" / "tokenizer.json").is_file()


def test_nothing_is_overwritten(tmp_path, uniter, vocabulary):
    out = tmp_path / "held"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="held exists and is not overwritten"):
        run(uniter, "--out", out, "--tokenizer", vocabulary)
    with pytest.raises(UserError, match=r"uniter-base.pt exists and is not overwritten"):
        run(uniter, "--out", uniter)
    assert (out / "mine.txt").read_text() == "kept"
    run(uniter, "--out", tmp_path / "new", "--tokenizer", vocabulary)
    with pytest.raises(UserError, match=r"names no \.pt"):
        run(tmp_path / "new", "--out", tmp_path / "other")


def test_a_failed_conversion_leaves_nothing(tmp_path, uniter, vocabulary):
    vocabulary.write_text("\n".join(pieces(30)) + "\n")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="has 50 word pieces and the tokenizer 30"):
        run(uniter, "--out", tmp_path / "out", "--tokenizer", vocabulary)
    assert {path.name for path in tmp_path.iterdir()} == before


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path, beside):
    sprung, path = tmp_path / "sprung", tmp_path / "uniter.pt"
    trap = Trap(f"touch {sprung}")
    torch.save({"model": published_uniter.state_dict(), "extra": trap} if beside else trap, path)
    with pytest.raises(UserError, match=r"uniter.pt holds more than weights .*system.* was not read") as caught:
        run(path, "--out", tmp_path / "out")
    assert not sprung.exists() and "\n" not in str(caught.value)


FILES = {
    "truncated": (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "no whole file of torch.save"),
    "empty": (lambda path, whole: path.write_bytes(b""), "no whole file of torch.save"),
    "text": (lambda path, whole: path.write_text("hello"), "no whole file of torch.save"),
    "number": (lambda path, whole: torch.save(3, path), "holds no state dict .found: int"),
    "optimiser": (lambda path, whole: torch.save({"step": 3, "lr": 0.1}, path), "holds step, lr, and no state dict under"),
}


@pytest.mark.parametrize("fault", list(FILES))
def test_a_broken_file(tmp_path, uniter, fault):
    spoil, sentence = FILES[fault]
    path = tmp_path / "broken.pt"
    spoil(path, uniter.read_bytes())
    with pytest.raises(UserError, match=sentence) as caught:
        run(path, "--out", tmp_path / "out")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_wrong_calls(tmp_path, uniter, vocabulary):
    with pytest.raises(UserError, match=r"nowhere.pt does not exist"):
        run(tmp_path / "nowhere.pt", "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--vocabulary is for a matcher's file"):
        run(uniter, "--out", tmp_path / "out", "--vocabulary", vocabulary)
    with pytest.raises(UserError, match="layout of uniter, not bert"):
        run(uniter, "--out", tmp_path / "out", "--layout", "bert")
    with pytest.raises(UserError, match="does not hold the two halves of a matcher"):
        run(uniter, "--out", tmp_path / "out", "--layout", "scan")
    matcher = tmp_path / "scan.tar"
    write_published(matcher, published_matchers.checkpoint("scan"))
    with pytest.raises(UserError, match="--tokenizer is for an encoder's file"):
        run(matcher, "--out", tmp_path / "out", "--tokenizer", vocabulary)
    with pytest.raises(UserError, match="holds the two halves of a matcher, not uniter's layout"):
        run(matcher, "--out", tmp_path / "out", "--layout", "uniter")
    with pytest.raises(UserError, match=r"the value of --option cross_attn=.* cannot be read"):
        run(matcher, "--out", tmp_path / "out", "--option", "cross_attn=[t2i")
    with pytest.raises(UserError, match="lambda_softmax='abc' among its options, which is no number"):
        run(matcher, "--out", tmp_path / "out", "--option", "lambda_softmax=abc")
    with pytest.raises(UserError, match="--option is for a matcher's file"):
        run(uniter, "--out", tmp_path / "out", "--option", "a=1")
    with pytest.raises(UserError, match="check the path, or give another --out"):
        run(uniter, "--out", uniter / "below", "--tokenizer", vocabulary)
    flat = tmp_path / "flat.pt"
    write_published(flat, published_uniter.state_dict() | {"uniter.embeddings.word_embeddings.weight": torch.ones(50)})
    with pytest.raises(UserError, match=r"word_embeddings.weight in .* has a shape that its layout does not know \(\[50\]\)"):
        run(flat, "--out", tmp_path / "out")
    with pytest.raises(UserError, match="--option cros_attn is none of scan's: did you mean 'cross_attn'"):
        run(matcher, "--out", tmp_path / "out", "--option", "cros_attn=t2i")
    with pytest.raises(UserError, match="--dtype is for a folder of this program"):
        run(matcher, "--out", tmp_path / "out", "--dtype", "fp16")
    with pytest.raises(UserError, match="--option bi_gru is not KEY=VALUE"):
        run(matcher, "--out", tmp_path / "out", "--option", "bi_gru")
    (tmp_path / "v.json").write_text(json.dumps({"word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3}}))
    with pytest.raises(UserError, match=r"v.json has 4 words and .*scan.tar 23"):
        run(matcher, "--out", tmp_path / "out", "--vocabulary", tmp_path / "v.json")


def test_the_command_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tagsds-convert", str(tmp_path / "none.pt"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        convert.main()
    assert caught.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_facts_of_the_card(tmp_path, uniter, vocabulary):
    run(uniter, "--out", tmp_path / "out", "--tokenizer", vocabulary)
    card = read_card(tmp_path / "out")
    assert card is not None and card.kind == "tagsds_uniter" and len(card.source["sha256"]) == 64 and card.recalls == []
