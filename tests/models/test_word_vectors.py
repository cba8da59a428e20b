"""Word vectors from a file: rows and scalar products by hand, a model that begins with them, and what a user is told."""

from __future__ import annotations

import pytest
import torch

from tagsds.config import load_config
from tagsds.data.vocabulary import Vocabulary, corpus_tokenizer
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tagsds.models.word_vectors import fit_width, put_word_vectors, read_word_vectors
from tagsds.prepare import build_model
from tests import launch
from tests.trained import save_run

PIECES = {"[PAD]": 0, "cat": 1, "dog": 2, "##s": 3, "tree": 4}
FILE = "4 2\ncat 1 0\nhouse 9 9\ndog 0 2\ncat 5 5\ntree -1 -2\n"


def written(folder, text=FILE):
    folder.mkdir(exist_ok=True)
    (folder / "vectors.txt").write_text(text, encoding="utf-8")
    return folder / "vectors.txt"


def test_words_of_the_vocabulary_are_read_once(tmp_path):
    numbers, vectors = read_word_vectors(written(tmp_path), PIECES)
    assert numbers.tolist() == [1, 2, 4]
    assert vectors.tolist() == [[1, 0], [0, 2], [-1, -2]]


@pytest.mark.parametrize("width", [2, 5])
def test_scalar_products_keep_their_proportions(width):
    """cat (1, 0), dog (0, 2), tree (-1, -2), whose mean is zero: products 1, 0, -1; 4, -4; 5."""
    vectors = torch.tensor([[1, 0], [0, 2], [-1, -2]], dtype=torch.float64)
    torch.manual_seed(3)
    found = fit_width(vectors, width, 0.1)
    assert found.shape == (3, width) and float(found.std()) == pytest.approx(0.1, rel=1e-5)
    products = (found @ found.T).double()
    torch.testing.assert_close(products / products[0, 0], vectors @ vectors.T, rtol=0, atol=1e-4)


def test_a_narrow_model_takes_the_main_axis():
    """(3, 4) t + (-4, 3) / 100 s: one axis holds all but 1/10,000 of it."""
    t, s = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    vectors = t[:, None] * torch.tensor([3.0, 4.0]) + s[:, None] * torch.tensor([-4.0, 3.0]) / 100
    found = fit_width(vectors, 1, 1.0).flatten()
    torch.testing.assert_close(found / found[2], t.float(), rtol=0, atol=1e-5)


def test_other_rows_keep_what_was_drawn(tmp_path):
    embedding = torch.randn(5, 2)
    before = embedding.clone()
    assert put_word_vectors(embedding, written(tmp_path), PIECES, 0.02) == 3
    assert torch.equal(embedding[[0, 3]], before[[0, 3]]) and not torch.equal(embedding[[1, 2, 4]], before[[1, 2, 4]])


def vectors_of(world, folder):
    """A file in which two pieces that are words have one vector, and the others vectors of their own."""
    words = [word for word in corpus_tokenizer(read_manifest(world)).get_vocab() if word.isalpha()]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(words), 6, generator=generator)
    rows[1] = rows[0]
    return words, written(folder, "".join(f"{w} {' '.join(map(str, r))}\n" for w, r in zip(words, rows.tolist(), strict=True)))


def model_with(world, settings):
    manifest = read_manifest(world)
    tokenizer = corpus_tokenizer(manifest)
    small = [setting for setting in launch.TINY if setting.startswith("model.")]
    config = load_config("published-pretrain-base", [*small, *settings])
    return build_model(config, manifest, Vocabulary.of(tokenizer)), tokenizer.get_vocab()


def test_a_model_from_scratch_begins_with_them(world, tmp_path):
    words, path = vectors_of(world, tmp_path)
    model, pieces = model_with(world, [f"model.word_vectors={path}"])
    plain, _ = model_with(world, [])
    rows, drawn = (m.text_embedding.word.weight.detach() for m in (model, plain))
    one, two, three = (pieces[word] for word in words[:3])
    torch.testing.assert_close(rows[one], rows[two], rtol=0, atol=0)
    assert not torch.equal(rows[one], rows[three]) and not torch.equal(drawn[one], drawn[two])
    outside = [number for piece, number in pieces.items() if not piece.isalpha()]
    assert torch.equal(rows[outside], drawn[outside])
    others = {name: value for name, value in plain.state_dict().items() if "word.weight" not in name and "decoder" not in name}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in others.items())


def test_what_a_user_is_told(world, tmp_path):
    for text, said in {
        "cat 1 2\ndog 3\n": r"line 2, has 1 numbers and the lines above 2; give a file",
        "cat 1 2\ndog 3 b\n": r"cannot be read as lines of a word and its numbers .*; give another file",
        "cat 1 2\nhouse 1 2\n": r"has 1 of the tokenizer's 5 pieces; give vectors of the captions' language",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=said):
            put_word_vectors(torch.zeros(5, 2), written(tmp_path, text), PIECES, 0.02)
    with pytest.raises(UserError, match=r"cannot be read"):
        read_word_vectors(tmp_path / "none.txt", PIECES)
    (tmp_path / "vectors.txt").write_bytes(b"cat 1 2\n\xff\xfe 3 4\n")
    with pytest.raises(UserError, match=r"cannot be read"):
        read_word_vectors(tmp_path / "vectors.txt", PIECES)
    save_run(tmp_path / "run", world)
    with pytest.raises(UserError, match=r"init names a checkpoint, which has its own; remove one"):
        model_with(world, [f"init={tmp_path / 'run'}", "model.word_vectors=x", "model.hidden_size=null"])
