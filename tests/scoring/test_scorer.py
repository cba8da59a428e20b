"""The scorer against one direct forward, its chunks, and what it must leave as it was."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tagsds.data.builder import PairBuilder
from tagsds.data.shards import load_bank
from tagsds.models.uniter import Layout
from tagsds.scoring import scorer
from tagsds.scoring.scorer import Scorer, score_matrix, without_dropout
from tests.small_world import caption_ids, model_of, score_of


@pytest.fixture(scope="module")
def corpus(world):
    bank, manifest = load_bank(world, "dev")
    return bank, model_of(manifest, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)  # dropout must not show


@pytest.fixture(scope="module")
def pairs(corpus):
    """60 pairs of mixed lengths, some of them repeated."""
    bank, _ = corpus
    random = torch.Generator().manual_seed(3)
    builder = PairBuilder(bank)
    captions = torch.randint(bank.num_captions, (60,), generator=random)
    builder.pairs(builder.captions(captions), torch.randint(bank.num_images, (60,), generator=random))
    return builder.build()


@pytest.fixture(scope="module")
def direct(corpus, pairs):
    """One full forward: every pair at once, all states, then [CLS]."""
    _, model = corpus
    with torch.no_grad(), without_dropout(model):
        return model.score(model(pairs)[Layout.of(pairs).cls()])


@pytest.mark.parametrize("max_tokens", [1, 17, 40, 100, 333, 1000, 10**6])
def test_scores_equal_one_full_forward(corpus, pairs, direct, max_tokens):
    scores = Scorer(corpus[1], max_tokens)(pairs)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, direct, atol=1e-5, rtol=1e-5)
    assert direct.std() > 0.1  # or equality would say little


@pytest.mark.parametrize("max_tokens", [1, 8, 25, 64, 200, 10**6])
@pytest.mark.parametrize("lengths", [[5], [3] * 20, [1, 2, 3, 4, 5, 6, 7, 8], [30, 1, 1, 30, 2, 30, 12, 12, 12, 5]])
def test_chunks_cover_all_pairs_once_and_respect_the_limit(corpus, lengths, max_tokens):
    chunks = Scorer(corpus[1], max_tokens).chunks(torch.tensor(lengths))
    members = [chunk.tolist() for chunk, _ in chunks]
    for chunk, extent in chunks:
        of_pairs = [lengths[i] for i in chunk.tolist()]
        assert (extent.tokens, extent.longest, extent.shortest) == (sum(of_pairs), max(of_pairs), min(of_pairs))
    assert sorted(i for chunk in members for i in chunk) == list(range(len(lengths)))
    for chunk in members:
        assert chunk
        assert sum(lengths[i] for i in chunk) <= max_tokens or len(chunk) == 1  # a pair longer than the limit goes alone
    ordered = [lengths[i] for chunk in members for i in chunk]
    assert ordered == sorted(lengths)  # next to nothing is padded


def test_a_limit_above_everything_needs_few_chunks(corpus):
    assert len(Scorer(corpus[1], 10**6).chunks(torch.tensor([4, 9, 4, 17]))) == 1
    assert len(Scorer(corpus[1], 10).chunks(torch.tensor([5] * 6))) == 3


class AskedNumbers(TorchDispatchMode):
    """Counts operations that make the host wait for a GPU: a number is read, or the size of the result depends on the data."""

    WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "bincount", "masked_select", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.WAITS or (name == "repeat_interleave" and not (kwargs or {}).get("output_size")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_no_chunk_waits_for_the_device(corpus, pairs):
    """As many numbers are asked of it for one chunk as for many."""
    asked = []
    for max_tokens in (10**6, 64):
        scorer = Scorer(corpus[1], max_tokens)
        with AskedNumbers() as mode:
            scorer(pairs)
        asked.append((len(mode.found), len(scorer.chunks(pairs.lengths))))
    assert asked[0][1] == 1 and asked[1][1] > 5
    assert asked[0][0] == asked[1][0] > 0


@pytest.mark.parametrize("training", [True, False])
def test_mode_is_restored_and_no_gradient_is_kept(corpus, pairs, training):
    model = corpus[1]
    model.train(training)
    scores = Scorer(model, 100)(pairs)
    assert all(module.training is training for module in model.modules())
    assert not scores.requires_grad and torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())
    model.train()


def test_mode_is_restored_after_an_error(corpus):
    model = corpus[1].train()
    with pytest.raises(RuntimeError, match="torn"), without_dropout(model):
        assert not model.training
        raise RuntimeError("torn")
    assert all(module.training for module in model.modules())


def test_repeated_calls_are_identical_and_leave_the_global_generator_alone(corpus, pairs):
    scorer = Scorer(corpus[1], 100)
    torch.manual_seed(4)
    expected = torch.rand(3).tolist()
    torch.manual_seed(4)
    first = scorer(pairs)
    assert torch.rand(3).tolist() == expected
    assert torch.equal(first, scorer(pairs))


def test_empty_handed_chunks_change_nothing(corpus, pairs):
    """Another rank has more chunks: this one runs along."""
    model, asked, forwards = corpus[1], [], []

    def lockstep(chunks: int) -> int:
        asked.append(chunks)
        return chunks + 3

    alone = Scorer(model, 200)
    expected, number = alone(pairs), len(alone.chunks(pairs.lengths))
    hook = model.pooler.register_forward_hook(lambda *_: forwards.append(1))
    scores = Scorer(model, 200, lockstep=lockstep)(pairs)
    hook.remove()
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert asked == [number] and number > 1
    assert len(forwards) == number + 3


def test_low_precision_mining(corpus, pairs, direct):
    scores = Scorer(corpus[1], 500, dtype=torch.bfloat16)(pairs)
    assert scores.dtype == torch.float32
    error = (scores - direct).abs().max()
    assert 1e-6 < error < 0.1 * direct.std() + 0.05 * direct.abs().max()  # it was used, and does no harm


def test_tables_are_embedded_once_and_the_last_layer_sees_cls_alone(corpus, pairs):
    model, rows, last = corpus[1], [], []
    hooks = [
        model.image_embedding.register_forward_hook(lambda _, args, out: rows.append(len(out))),
        model.layers[-1].expand.register_forward_hook(lambda _, args, out: last.append(len(out))),
    ]
    Scorer(model, 100)(pairs)
    for hook in hooks:
        hook.remove()
    assert rows == [int(pairs.images.lengths.sum())]
    assert sum(last) == len(pairs)


@pytest.mark.parametrize(("block_images", "blocks"), [(1, 4), (3, 2), (50, 1)])
def test_a_long_evaluation_gives_memory_back(corpus, block_images, blocks, monkeypatch):
    """After each block of images: with what a process keeps for its training steps, 1,000 images grew to 10 GiB."""
    bank, model = corpus
    given = []
    monkeypatch.setattr(scorer, "give_back_freed_memory", lambda: given.append(1))
    score_matrix(Scorer(model), bank, torch.arange(4), torch.arange(5), progress=False, block_images=block_images)
    assert len(given) == blocks


@pytest.mark.parametrize("block_images", [1, 3, 50])
def test_score_matrix_equals_pairwise_scores(corpus, block_images):
    bank, model = corpus
    images, captions = torch.tensor([4, 0, 11, 7]), torch.tensor([9, 58, 2, 2, 30])
    matrix = score_matrix(Scorer(model, 150), bank, images, captions, progress=False, block_images=block_images)
    assert matrix.shape == (4, 5)
    with torch.no_grad(), without_dropout(model):
        expected = [[float(score_of(model, bank, caption_ids(bank, int(c)), int(i))) for c in captions] for i in images]
    torch.testing.assert_close(matrix, torch.tensor(expected), atol=1e-5, rtol=1e-5)
