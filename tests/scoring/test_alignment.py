"""Word-region alignment against a plain forward with BERT's formulas, piece by piece."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import tagsds
from tagsds.data.shards import load_bank
from tagsds.scoring.alignment import attention_of
from tests.small_world import one_pair, states_of
from tests.trained import save_run

SENTENCE = "a purple diamond left of a blue square"


@pytest.fixture(scope="module")
def loaded(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tagsdc"
    model = save_run(folder, world)
    return model, tagsds.load(folder, world, "cpu", split="dev"), load_bank(world, "dev")[0]


@torch.no_grad()
def plain_attention(model, x):
    """[layers][heads] of [N, N] lists, and the states of the last layer, by the formulas of BERT."""
    found = []
    for layer in model.layers:
        width, heads = x.shape[1], layer.heads
        size = width // heads
        q, k, v = (x @ w.T + b for w, b in zip(layer.qkv.weight.split(width), layer.qkv.bias.split(width), strict=True))
        maps, context = [], []
        for h in range(heads):
            a, b = h * size, (h + 1) * size
            rows = []
            for i in range(len(x)):
                exps = [math.exp(float(q[i, a:b] @ k[j, a:b]) / math.sqrt(size)) for j in range(len(x))]
                rows.append([e / sum(exps) for e in exps])
            maps.append(rows)
            context.append(torch.tensor(rows) @ v[:, a:b])
        found.append(maps)
        x = layer.attention_norm(F.linear(torch.cat(context, 1), layer.attention_out.weight, layer.attention_out.bias), x, 0.0)
        inner = F.gelu(F.linear(x, layer.expand.weight, layer.expand.bias))
        x = layer.norm(F.linear(inner, layer.contract.weight, layer.contract.bias), x, 0.0)
    return found, x


@pytest.mark.parametrize("row", [0, 5])
def test_weights_are_attention_both_ways(loaded, row):
    model, retriever, bank = loaded
    ids = torch.tensor(retriever.tokenizer(SENTENCE)["input_ids"])
    pieces = retriever.tokenizer.convert_ids_to_tokens(ids.tolist())
    pair = one_pair(bank, ids, row)
    with torch.no_grad():
        x = model.embed(pair.texts, pair.images).x
    maps, states = plain_attention(model, x)
    with torch.no_grad():
        torch.testing.assert_close(states, states_of(model, bank, ids, row), atol=1e-4, rtol=1e-4)  # the same forward
    torch.testing.assert_close(attention_of(model, pair), torch.tensor(maps), atol=1e-5, rtol=1e-4)

    def a(i, j):
        return sum(sum(head[i][j] for head in layer) / len(layer) for layer in maps)

    regions = range(len(ids), len(x))
    expected, word = [], []
    for position in range(1, len(ids) - 1):
        if not pieces[position].startswith("##"):
            word.append([])
        word[-1].append(position)
    for positions in word:
        weights = [sum(a(p, r) * a(r, p) for p in positions) for r in regions]
        expected.append([w / sum(weights) for w in weights])
    found = retriever.align(bank.keys[row], SENTENCE)
    assert [text for text, _ in found] == SENTENCE.split()
    torch.testing.assert_close(torch.stack([w for _, w in found]), torch.tensor(expected), atol=1e-5, rtol=1e-3)


def test_words_of_several_pieces_and_what_cannot_be_aligned(loaded, world):
    _, retriever, bank = loaded
    assert any(len(retriever.tokenizer(word)["input_ids"]) > 3 for word in ("purples", "zoo", "redblue"))
    found = retriever.align(bank.keys[1], "Zoo purples, redblue!")
    assert [text for text, _ in found] == ["Zoo", "purples", ",", "redblue", "!"]
    assert all(row.dtype == torch.float32 and float(row.sum()) == pytest.approx(1, abs=1e-5) for _, row in found)
    with pytest.raises(tagsds.UserError, match="a sentence is empty"):
        retriever.align(bank.keys[1], " ")
    with pytest.raises(tagsds.UserError, match="is not in split 'dev'"):
        retriever.align("nowhere", SENTENCE)
    alone = tagsds.load(retriever.folder, device="cpu")
    with pytest.raises(tagsds.UserError, match="was loaded without a corpus"):
        tagsds.load(retriever.folder, alone)
    again = tagsds.load(retriever.folder, retriever)
    assert again.gallery is retriever.gallery
    torch.testing.assert_close(again.score(bank.keys[0], SENTENCE), retriever.score(bank.keys[0], SENTENCE))
