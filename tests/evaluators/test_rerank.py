"""Reranking against literal lists, worked by hand, end to end, and by two processes."""

import json

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.evaluators import Plan, Subject, check_evaluators, make_evaluators, prepare_evaluators, run_evaluators
from tagsds.evaluators.metrics import ranks, recalls_of_ranks
from tagsds.evaluators.protocol import first_captions
from tagsds.evaluators.shortlist import order_keys, reranked, shortlist
from tagsds.models import UniterModel
from tagsds.models.load import load_model
from tagsds.scoring.scorer import Scorer
from tests import stand_in
from tests import tiny_corpus as tiny
from tests.launch import run_two


def figures(similarity, encoder, k, image_of_caption):
    """Text and image ranks after reranking, all scores of the encoder being there."""
    lists = shortlist(similarity, k)
    pairs = lists.pairs()
    of_rows, of_columns = reranked(similarity, lists, pairs, encoder.flatten()[pairs])
    return ranks(of_rows, image_of_caption)[0].tolist(), ranks(of_columns, image_of_caption)[1].tolist()


def literal_rank(similarity: list[float], encoder: list[float], own: set[int], k: int) -> int:
    """Of one query: the list by sorting, then one comparison after the other."""
    chosen = sorted(range(len(similarity)), key=lambda item: (-similarity[item], item))[:k]

    def value(item: int) -> tuple[int, float]:
        return (1, encoder[item]) if item in chosen else (0, similarity[item])

    best = max(value(item) for item in own)
    return sum(value(item) >= best for item in range(len(similarity)) if item not in own)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 9, 15, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_equal_literal_lists(k, seed):
    generator = torch.Generator().manual_seed(seed)
    images, captions = 6, 15
    image_of_caption = torch.cat([torch.arange(6), torch.randint(6, (9,), generator=generator)])
    similarity = torch.randint(-3, 4, (images, captions), generator=generator) / 4  # few values: many ties
    encoder = torch.randint(-3, 4, (images, captions), generator=generator) * 7.5
    text, image = figures(similarity, encoder, k, image_of_caption)
    owned = [{c for c in range(captions) if image_of_caption[c] == i} for i in range(images)]
    assert text == [literal_rank(similarity[i].tolist(), encoder[i].tolist(), owned[i], k) for i in range(images)]
    assert image == [
        literal_rank(similarity[:, c].tolist(), encoder[:, c].tolist(), {int(image_of_caption[c])}, k) for c in range(captions)
    ]
    if k >= captions:
        exact = ranks(encoder, image_of_caption)
        assert (text, image) == (exact[0].tolist(), exact[1].tolist())


# Four images with a caption each; the fourth caption's own image is the matcher's last.
SIMILARITY = torch.tensor([[0.9, 0.5, 0.1, 0.8], [0.8, 0.7, 0.2, 0.6], [0.3, 0.6, 0.4, 0.5], [0.2, 0.1, 0.0, 0.1]])
OWN = torch.arange(4)


def test_worked_by_hand():
    lists = shortlist(SIMILARITY, 2)
    assert lists.captions_of_image.tolist() == [[0, 3], [0, 1], [1, 3], [0, 1]]  # 0.1 twice: the lower number
    assert lists.images_of_caption.tolist() == [[0, 1], [1, 2], [2, 1], [0, 1]]
    assert lists.recall(OWN) == {"text": 50.0, "image": 75.0}
    encoder = torch.zeros(4, 4)
    encoder[1, 0], encoder[1, 1] = 5.0, 6.0  # the encoder puts image 1's own caption first
    text, image = figures(SIMILARITY, encoder, 2, OWN)
    assert text[1] == 0 and ranks(SIMILARITY, OWN)[0][1] == 1
    assert text[0] == 1  # equal scores within the list: against us
    assert text[2] == 2  # caption 2 is outside: behind captions 1 and 3, though no score tells it from caption 0
    assert text[3] == 2  # outside: behind captions 0 and 1 (a tie with it for the matcher), before caption 2
    assert image == [1, 0, 1, 3]  # caption 0: image 1 scores 5 > 0; 2: a tie in the list; 3: the matcher's last


def test_the_first_alone_changes_nothing():
    """With K = 1 the list holds one item, whatever the encoder says of it."""
    encoder = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    unique = SIMILARITY + torch.arange(16).view(4, 4) * 1e-4
    expected = ranks(unique, OWN)
    assert figures(unique, encoder, 1, OWN) == (expected[0].tolist(), expected[1].tolist())
    assert figures(unique, -100 * encoder.abs(), 1, OWN)[0] == expected[0].tolist()


def test_a_true_item_outside_keeps_its_place_among_the_rest():
    similarity = torch.tensor([[0.1, 0.9, 0.8, 0.3, 0.2, 0.1]])
    for scores in (torch.full((1, 6), -1e30), torch.full((1, 6), 1e30)):
        lists = shortlist(similarity, 2)
        of_rows, _ = reranked(similarity, lists, torch.arange(6), scores.flatten())
        others = of_rows[0, 1:]
        assert (others >= of_rows[0, 0]).tolist() == [True, True, True, True, True]  # the last is a tie
        assert of_rows[0].argsort(descending=True, stable=True).tolist() == [1, 2, 3, 4, 0, 5]


def test_order_keys_order_as_the_values_do():
    values = torch.tensor([-torch.inf, -3.5, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0000001, torch.inf])
    keys = order_keys(values)
    assert torch.equal(keys[:, None] < keys, values[:, None] < values)
    assert torch.equal(keys[:, None] == keys, values[:, None] == values)


def test_pairs_of_both_lists_once():
    pairs = shortlist(SIMILARITY, 2).pairs().tolist()
    text = {(0, 0), (0, 3), (1, 0), (1, 1), (2, 1), (2, 3), (3, 0), (3, 1)}
    image = {(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (1, 2), (0, 3), (1, 3)}
    assert pairs == sorted(4 * i + c for i, c in text | image)
    assert shortlist(SIMILARITY, 100).pairs().tolist() == list(range(16))


def test_bad_scores():
    lists = shortlist(SIMILARITY, 1)
    pairs = lists.pairs()
    scores = torch.zeros(len(pairs))
    with pytest.raises(ValueError, match="no score"):
        reranked(SIMILARITY, lists, pairs[1:], scores[1:])
    scores[2] = torch.nan
    image, caption = divmod(int(pairs[2]), 4)
    with pytest.raises(UserError, match=f"image {image} with caption {caption} is NaN"):
        reranked(SIMILARITY, lists, pairs, scores)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    tiny.write_checkpoint(root / "encoder" / "export")
    stand_in.write_matcher(root / "matcher" / "export")
    return root


def call(runs, corpus, output, *more):
    arguments = ["--checkpoint", runs / "encoder", "--data", corpus, "--output", output, *more]
    program.main([str(a) for a in arguments])
    return json.loads(output.read_text())


def shortlisted(runs):
    return ["--shortlist", runs / "matcher", "--rerank"]


def test_end_to_end(corpus, runs, tmp_path, capsys):
    results = call(runs, corpus, tmp_path / "r.json", *shortlisted(runs), 3, 1, 999)
    printed = capsys.readouterr().out
    bank, _ = load_bank(corpus, "test")
    captions = first_captions(bank, 8, 5)
    own = bank.image_of_caption[captions]
    encoder, matcher = (load_model(runs / name / "export") for name in ("encoder", "matcher"))
    with torch.no_grad():
        similarity = matcher.similarity(bank.image_table(torch.arange(8)), bank.text_table(captions))
    scores = Scorer(encoder).matrix(bank, torch.arange(8), captions, progress=False)
    assert [row["k"] for row in results["rerank"]] == [1, 3, 40]  # in order, and cut to the corpus
    for row in results["rerank"]:
        text, image = figures(similarity, scores, row["k"], own)
        expected = recalls_of_ranks(torch.tensor(text), torch.tensor(image)).as_dict()
        assert row["recalls"] == pytest.approx(expected)
        assert row["pairs_scored"] == len(shortlist(similarity, row["k"]).pairs())
        assert row["recall_of_shortlist"] == shortlist(similarity, row["k"]).recall(own)
        assert row["seconds"]["matcher"] > 0 and row["seconds"]["encoder"] > 0
    last = results["rerank"][-1]
    assert last["recalls"] == results["recalls"] and last["pairs_scored"] == 8 * 40 == results["exact"]["pairs_scored"]
    assert last["recall_of_shortlist"] == {"text": 100.0, "image": 100.0}
    alone = recalls_of_ranks(*ranks(similarity, own)).as_dict()
    assert results["shortlist"] == {"checkpoint": str((runs / "matcher" / "export").resolve()), "recalls": pytest.approx(alone)}
    assert results["provenance"]["shortlist"]["head"] == "similarity"
    assert len(results["provenance"]["shortlist"]["weights_sha256"]) == 64
    for words in ("matcher alone", "its first 3, reranked", "exact", "pairs scored"):
        assert words in printed


def test_without_the_exact_scores(corpus, runs, tmp_path, capsys):
    edits = tiny.write_edits(tmp_path / "object.json")
    results = call(runs, corpus, tmp_path / "r.json", *shortlisted(runs), 4, "--no-exact", "--pairs", edits)
    assert not {"recalls", "exact", "examples", "score_histogram"} & set(results)
    assert results["edits"]["object"]["pairs"] == 8 and results["pairs_scored"] == 16
    assert (results["images"], results["captions"]) == (8, 40)
    printed = capsys.readouterr().out
    assert "its first 4, reranked" in printed and "\nexact " not in printed
    bare = call(runs, corpus, tmp_path / "b.json", *shortlisted(runs), 4, "--no-exact")
    assert bare["rerank"][0]["recalls"] == results["rerank"][0]["recalls"] and bare["pairs_scored"] == 0


def test_the_encoder_sees_every_pair_once(corpus, runs):
    """The pairs of K = 2 are not scored again for K = 5."""
    bank, manifest = load_bank(corpus, "test")
    encoder = load_model(runs / "encoder" / "export")
    seen = []
    hook = encoder.pooler.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    evaluators, subject = make_evaluators({"rerank": {"shortlist": runs / "matcher", "ks": [2, 5]}}), Subject.of(encoder, bank)
    check_evaluators(evaluators, Plan(manifest, "test", UniterModel))
    prepare_evaluators(evaluators, subject)
    results = run_evaluators(evaluators, subject)
    hook.remove()
    assert sum(seen) == results["rerank"][1]["pairs_scored"] > results["rerank"][0]["pairs_scored"]


def test_two_processes_give_the_same_numbers(corpus, runs, tmp_path):
    options = [*shortlisted(runs), 1, 3, 6, "--first", 7, "--no-exact"]
    one = call(runs, corpus, tmp_path / "one.json", *options)
    command = [stand_in.__file__, "--checkpoint", runs / "encoder", "--data", corpus, *options, "--output", tmp_path / "two.json"]
    printed = run_two(*command)
    assert "reranked" in printed[0] and printed[1] == ""
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["provenance"]["ranks"] == 2
    for row in (*one["rerank"], *two["rerank"]):
        del row["seconds"]
    assert one["rerank"] == two["rerank"] and one["shortlist"] == two["shortlist"]


def test_bad_options(corpus, runs, tmp_path, capsys):
    def fails(*more) -> str:
        with pytest.raises(SystemExit):
            call(runs, corpus, tmp_path / "r.json", *more)
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "Traceback" not in message and not (tmp_path / "r.json").exists()
        return message

    assert "with --shortlist" in fails("--rerank", 4)
    assert "give --rerank" in fails("--shortlist", runs / "matcher")
    assert "--no-exact leaves nothing" in fails("--no-exact")
    assert "--rerank is 0" in fails(*shortlisted(runs), 0)
    assert "omit --no-exact" in fails(*shortlisted(runs), 4, "--no-exact", "--ensemble", runs / "encoder")
    assert "omit --no-exact" in fails(*shortlisted(runs), 4, "--no-exact", "--coco-folds")
    assert "omit --no-retrieval" in fails(*shortlisted(runs), 4, "--no-retrieval", "--pairs", tmp_path)
    assert "give the run of a matcher" in fails("--shortlist", runs / "encoder", "--rerank", 4)
    assert "needs a run of the pair encoder" in fails(*shortlisted(runs), 4, "--checkpoint", runs / "matcher")
    stand_in.write_matcher(tmp_path / "wide" / "export", region_dim=5)
    assert "region_dim 5" in fails("--shortlist", tmp_path / "wide", "--rerank", 4)
