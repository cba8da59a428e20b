"""Checksums of exports and of a corpus's tokenizer: every changed file is named, with the remedy; older folders load as before."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from tagsds import evaluate
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import corpus_tokenizer
from tagsds.errors import UserError
from tagsds.files import check_checksums, write_checksums
from tagsds.formats.manifest import read_manifest
from tagsds.models.card import Card, record_recalls
from tagsds.models.convert import run as convert
from tagsds.models.load import load_model, read_config
from tests import stand_in
from tests import tiny_corpus as tiny
from tests.models import published_uniter


@pytest.fixture
def export(tmp_path):
    folder = tiny.write_checkpoint(tmp_path / "run" / "export")
    Card(kind="tagsds_uniter").write(folder)
    write_checksums(folder)
    return folder


def flip(path, at=-1, bit=1):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(bytes(data))


# --- the two functions --------------------------------------------------------------------------------------------------


def test_what_is_written(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.bin", "inner/b.bin", "README.md", "card.json"):
        (tmp_path / name).write_bytes(name.encode())
    write_checksums(tmp_path)
    written = json.loads((tmp_path / "checksums.json").read_text())
    assert (written["format"], written["version"]) == ("tagsds-checksums", 1)
    sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.bin", "inner/b.bin")}
    assert written["files"] == {name: {"bytes": len(name), "sha256": value} for name, value in sums.items()}
    write_checksums(tmp_path)  # a second time: its own file is not among them
    assert json.loads((tmp_path / "checksums.json").read_text()) == written
    write_checksums(tmp_path, ["a.bin"])
    assert list(json.loads((tmp_path / "checksums.json").read_text())["files"]) == ["a.bin"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"a.bin is named in checksums.json but missing; copy it\."),
        (lambda path: path.write_bytes(b"123"), r"a.bin has 3 bytes where checksums.json says 4; copy it\."),
        (lambda path: path.write_bytes(b"12345"), "a.bin has 5 bytes where"),
        (lambda path: path.write_bytes(b"1235"), r"a.bin has another sha256 than checksums.json says; copy it\."),
    ],
)
def test_what_is_found(tmp_path, change, message):
    (tmp_path / "a.bin").write_bytes(b"1234")
    assert check_checksums(tmp_path, "copy it") is False  # without checksums.json
    write_checksums(tmp_path)
    assert check_checksums(tmp_path, "copy it") is True
    (tmp_path / "more.bin").write_bytes(b"1")  # a further file is allowed
    assert check_checksums(tmp_path, "copy it") is True
    change(tmp_path / "a.bin")
    with pytest.raises(UserError, match=message):
        check_checksums(tmp_path, "copy it")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "tagsds-checksums", "version": 1, "files": {}}',
                                     '{"format": "tagsds-checksums", "version": 1, "files": {"a.bin": 3}}',
                                     '{"format": "tagsds-checksums", "version": 2, "files": {"a.bin": {}}}'])  # fmt: skip
def test_damaged_checksums(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(b"1234")
    (tmp_path / "checksums.json").write_text(content)
    with pytest.raises(UserError, match=r"checksums.json .*; copy it\."):
        check_checksums(tmp_path, "copy it")


def test_large_files_only_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("tagsds.files.LARGE_BYTES", 3)
    (tmp_path / "a.bin").write_bytes(b"1234")
    write_checksums(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"1235")
    check_checksums(tmp_path, "copy it", large=False)
    with pytest.raises(UserError, match="another sha256"):
        check_checksums(tmp_path, "copy it")
    (tmp_path / "a.bin").write_bytes(b"123")
    with pytest.raises(UserError, match="has 3 bytes"):
        check_checksums(tmp_path, "copy it", large=False)


# --- exports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("lost", [True, False])
def test_every_file_of_an_export_is_named(export, name, lost):
    load_model(export)
    if lost:
        (export / name).unlink()
    else:
        flip(export / name, -3)
    with pytest.raises(UserError, match=rf"{name} .*; copy the folder again, or export the run again\."):
        load_model(export)


def test_the_card_may_change(export):
    recalls = {f"{side}_r{n}": 1.0 for side in ("text", "image") for n in (1, 5, 10)} | {"rsum": 6.0}
    assert record_recalls(export, "test", export, {"images": 5, "recalls": recalls})
    (export / "README.md").write_text("my own words")
    load_model(export)


def test_folders_without_checksums_load_as_before(export):
    (export / "checksums.json").unlink()
    (export / "tokenizer.json").unlink()
    load_model(export)


def test_the_config_alone_is_checked_before_the_weights(export):
    """`read_config` comes before long work, and a lost tokenizer must not pass for a folder that never had one."""
    (export / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json is named in checksums.json but missing"):
        read_config(export)


def test_commands_name_it(export, tmp_path, capsys):
    corpus = tiny.write_shards(tmp_path / "shards")
    matcher = stand_in.write_matcher(tmp_path / "matcher")
    write_checksums(matcher)
    flip(matcher / "model.safetensors", -2)

    def message(*more):
        with pytest.raises(SystemExit) as ended:
            evaluate.main([str(one) for one in ("--data", corpus, *more)])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "matcher/model.safetensors has another sha256" in message("--checkpoint", matcher)
    assert "matcher/model.safetensors has another sha256" in message("--checkpoint", export, "--shortlist", matcher, "--rerank", 2)
    flip(export / "model.safetensors", -2)
    assert "export/model.safetensors has another sha256" in message("--checkpoint", export)
    assert "export/model.safetensors has another sha256" in message("--checkpoint", export.parent)
    with pytest.raises(UserError, match=r"export/model.safetensors has another sha256"):
        convert([str(export.parent), "--out", str(tmp_path / "back.pt")])


def test_conversions_have_checksums(tmp_path):
    import torch

    torch.save(published_uniter.state_dict(width=64), tmp_path / "uniter.pt")
    convert([str(tmp_path / "uniter.pt"), "--out", str(tmp_path / "ours")])
    listed = json.loads((tmp_path / "ours" / "checksums.json").read_text())["files"]
    assert set(listed) == {"config.json", "model.safetensors", "published.json"}
    flip(tmp_path / "ours" / "published.json", 40)
    with pytest.raises(UserError, match=r"published.json has another sha256"):
        convert([str(tmp_path / "ours"), "--out", str(tmp_path / "back.pt")])


def test_what_does_not_fit_the_config_is_named_without_checksums(export):
    """Sizes of a config are held against the header of the weights, before memory is taken for them."""
    (export / "checksums.json").unlink()
    config = json.loads((export / "config.json").read_text())
    for change, message in (
        ({"intermediate_size": 1 << 20}, r"has layers.0.expand.weight as F32 \[32, 16\], where its config means \[1048576, 16\]"),
        ({"num_hidden_layers": 100_000}, "tensors for 100000 layers"),
        ({"hidden_size": 10**12}, r"config.json has hidden_size of more than 1048576, which cannot be"),
        ({"num_labels": 10**9}, r"config.json has num_labels of more than 1048576"),
        ({"num_attention_heads": 0}, r"config.json has hidden_size 16 for 0 attention heads"),
        ({"layer_norm_eps": "small"}, r"config.json has layer_norm_eps 'small'"),
    ):
        (export / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            load_model(export)


# --- the tokenizer of a corpus ------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(world, tmp_path):
    return shutil.copytree(world, tmp_path / "corpus")


def test_the_packer_notes_the_tokenizers_files(corpus):
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (corpus / "tokenizer").iterdir()}
    assert "tokenizer.json" in sums and json.loads((corpus / "manifest.json").read_text())["tokenizer_files"] == sums
    corpus_tokenizer(read_manifest(corpus))


def test_a_changed_tokenizer_is_named(corpus):
    path = corpus / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"lowercase": true', '"lowercase": false'))
    assert path.read_text() != text
    for load in (lambda: load_bank(corpus, "dev"), lambda: corpus_tokenizer(read_manifest(corpus))):
        with pytest.raises(UserError, match=r"tokenizer.json has another sha256 than manifest.json says; copy it again"):
            load()
    path.write_text(text)
    (corpus / "tokenizer" / "added_tokens.json").write_text('{"zebra": 5}')
    with pytest.raises(UserError, match=r"added_tokens.json is not among the tokenizer's files that .*; remove it"):
        load_bank(corpus, "dev")


def test_older_manifests_load_as_before(corpus):
    manifest = json.loads((corpus / "manifest.json").read_text())
    expected = load_bank(corpus, "dev")[0]
    del manifest["tokenizer_files"]
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    path = corpus / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert load_bank(corpus, "dev")[0].texts == expected.texts
