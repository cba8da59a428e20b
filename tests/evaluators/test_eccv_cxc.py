"""ECCV Caption and CxC: against eccv_caption's own figures on the whole test split, by hand, and on corpora that lack some."""

import contextlib
import io
import json
import sys
import warnings

import pytest
import torch

from tagsds import evaluate as program
from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.errors import UserError
from tagsds.evaluators import Subject, make_evaluators
from tagsds.evaluators.protocol import MATRIX
from tagsds.evaluators.relevance import Benchmark, Queries, places, precision_figures
from tagsds.reporting.table import results_table
from tests import stand_in

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # "failed to import ujson"
    eccv_caption = pytest.importorskip("eccv_caption", reason="the package eccv_caption is not installed")


def bank_of(image_keys: list[str], caption_ids: list[str], owner: torch.Tensor) -> Bank:
    """Ids alone: a bank whose captions and images are empty."""
    images, captions = len(image_keys), len(caption_ids)
    nothing = Ragged(torch.empty(0, dtype=torch.int32), torch.zeros(captions, dtype=torch.int64))
    order = torch.argsort(owner, stable=True)
    regions = Ragged(torch.zeros(images, 1), torch.ones(images, dtype=torch.int64))
    return Bank(
        tokens=nothing, spans=nothing, image_of_caption=owner,
        captions_of_image=Ragged(order, torch.bincount(owner, minlength=images)), regions=regions, boxes=torch.zeros(images, 4),
        texts=caption_ids, keys=image_keys, caption_ids=caption_ids,
    )  # fmt: skip


def evaluated(name: str, bank: Bank, scores: torch.Tensor, captions_per_image: int = 5, **settings) -> dict:
    """The evaluator's entry for given scores of all of the bank's captions."""
    subject = Subject.of(stand_in.matcher(), bank, captions_per_image=captions_per_image)
    (evaluator,) = make_evaluators({name: settings})
    evaluator.check(None)
    evaluator.prepare(subject)
    subject.scores[MATRIX] = scores.index_select(1, subject.captions)
    return evaluator.figures(subject)[name]


@pytest.fixture(scope="module")
def split():
    """(eccv_caption's object, a bank of its ids in an order of our own, scores float32 [5000, 25000], true pairs lifted)."""
    metrics = eccv_caption.Metrics()
    generator = torch.Generator().manual_seed(11)
    caption_ids = [int(c) for c in metrics.coco_ids]
    image_ids = list(dict.fromkeys(metrics.coco_gts["t2i"][c][0] for c in caption_ids))
    image_ids = [image_ids[i] for i in torch.randperm(len(image_ids), generator=generator)]
    row = {image: i for i, image in enumerate(image_ids)}
    owner = torch.tensor([row[metrics.coco_gts["t2i"][c][0]] for c in caption_ids])
    forms = "{:012d}", "COCO_val2014_{:012d}", "{}"
    keys = [forms[i % 3].format(image) for i, image in enumerate(image_ids)]
    scores = torch.randn(5000, 25000, generator=generator)
    scores[owner, torch.arange(25000)] += 3.0
    column = {caption: c for c, caption in enumerate(caption_ids)}
    for image, captions in metrics.eccv_gts["i2t"].items():  # so that the further true pairs matter
        columns = [column[c] for c in captions if c in column]
        scores[row[image], columns] += 1.5
    return metrics, bank_of(keys, [str(c) for c in caption_ids], owner), image_ids, caption_ids, scores


@pytest.fixture(scope="module")
def theirs(split):
    """Figures of eccv_caption from lists that torch.topk ranked: no two of the scores that matter are equal."""
    metrics, _, image_ids, caption_ids, scores = split
    depth = max(len(set(named)) for table in metrics.eccv_gts.values() for named in table.values())
    i2t, t2i = {}, {}
    for rows in torch.arange(5000).split(250):
        best = scores[rows].topk(depth, dim=1).indices.tolist()
        i2t |= {image_ids[row]: [caption_ids[c] for c in found] for row, found in zip(rows.tolist(), best, strict=True)}
    for columns in torch.arange(25000).split(2500):
        best = scores[:, columns].t().topk(depth, dim=1).indices.tolist()
        t2i |= {caption_ids[c]: [image_ids[i] for i in found] for c, found in zip(columns.tolist(), best, strict=True)}
    wanted = ["eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_recalls"]
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        return metrics.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=(1, 5, 10, 37))


SIDES = {"text": "i2t", "image": "t2i"}


def test_eccv_caption_to_nine_digits(split, theirs):
    found = evaluated("eccv", split[1], split[4])
    for name, name_of_theirs in {"map_at_r": "eccv_map_at_r", "r_precision": "eccv_rprecision", "r1": "eccv_r1"}.items():
        for side, name_of_side in SIDES.items():
            assert found[f"{side}_{name}"] == pytest.approx(100 * float(theirs[name_of_theirs][name_of_side]), abs=1e-9)
    assert found["partial"] is False and (found["images"], found["captions"]) == (5000, 25000)
    assert (found["text_queries"], found["image_queries"]) == (1261, 1332)
    assert 5 < found["image_map_at_r"] < found["image_r1"] < 95 and 5 < found["text_map_at_r"] < 95


def test_cxc_exactly(split, theirs):
    found = evaluated("cxc", split[1], split[4], at=[37])
    for n in (1, 5, 10, 37):
        for side, name_of_side in SIDES.items():
            assert found[f"{side}_r{n}"] == pytest.approx(100 * float(theirs[f"cxc_r{n}"][name_of_side]), abs=1e-9)
    assert found["rsum"] == pytest.approx(sum(found[f"{side}_r{n}"] for side in SIDES for n in (1, 5, 10)))
    assert (found["text_queries"], found["image_queries"], found["partial"]) == (5000, 24972, False)


def test_further_images_of_a_corpus_are_not_ranked(split):
    """A hundred images more, each with a caption, all of them scored above everything else: no figure changes."""
    _, bank, _, _, scores = split
    more = torch.arange(5000, 5100)
    keys, ids = [*bank.keys, *(f"extra-{i}" for i in range(100))], [*bank.caption_ids, *(f"x{i}" for i in range(100))]
    larger = bank_of(keys, ids, torch.cat([bank.image_of_caption, more]))
    high = torch.full((5100, 25100), 100.0)
    high[:5000, :25000] = scores
    assert evaluated("eccv", larger, high) == evaluated("eccv", bank, scores)


def test_places_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.8, 0.1, 0.5], [0.3, 0.3, 0.3, 0.3, 0.3], [0.0, 1.0, 2.0, 3.0, 4.0]])
    true = Queries(torch.tensor([2, 0, 1]), torch.tensor([[4, 3, -1], [2, 4, -1], [1, 0, 3]]), torch.tensor([2, 3, 3]))
    found = places(scores, true)
    # query 2: items 4 and 3 lead. Query 0: item 2 ties with 1, so two are above it; then item 4. Query 1: all tie: two others first
    assert found.tolist() == [[0, 1, 5], [2, 3, 5], [2, 3, 4]]
    assert places(scores, true, most=1).tolist() == [[0], [2], [2]]
    figures = precision_figures(found, true.wanted)
    # query 2, R 2: both inside. Query 0, R 3 (a true item is not in the corpus): place 2 holds the first of them, 1/3 of three
    assert figures["r_precision"] == pytest.approx(100 * (1 + 1 / 3 + 1 / 3) / 3)
    assert figures["map_at_r"] == pytest.approx(100 * (1 + (1 / 3) / 3 + (1 / 3) / 3) / 3)
    assert figures["r1"] == pytest.approx(100 / 3)


TINY = Benchmark(
    owner={10: 1, 11: 1, 20: 2, 30: 3},
    captions_of_image={1: [10, 11, 20, 99], 3: [30]},
    images_of_caption={10: [1, 3], 20: [2, 1], 30: [3]},
)


def entries(name: str, bank: Bank, scores: torch.Tensor, monkeypatch) -> dict:
    monkeypatch.setattr("tagsds.evaluators.relevance.load_benchmark", lambda _: TINY)
    return evaluated(name, bank, scores)


def test_a_tiny_corpus_by_hand(monkeypatch):
    bank = bank_of(["1", "2", "3"], ["10", "11", "20", "30"], torch.tensor([0, 0, 1, 2]))
    scores = torch.tensor([[0.9, 0.1, 0.8, 0.7], [0.2, 0.9, 0.5, 0.1], [0.3, 0.2, 0.1, 0.3]])
    found = entries("eccv", bank, scores, monkeypatch)
    # image 1, R = 4 (caption 99 is outside): 10 first, 20 second, 11 fourth -> 3/4, (1 + 1 + 3/4) / 4. Image 3: 30 ties -> 0
    assert found["text_r_precision"] == pytest.approx(100 * 0.75 / 2)
    assert found["text_map_at_r"] == pytest.approx(100 * (2.75 / 4) / 2)
    assert found["text_r1"] == pytest.approx(50)
    # caption 10, images 1 (0.9) and 3 (0.3), R 2: both lead. 20: images 1 (0.8), 2 (0.5): both lead. 30: image 3 (0.3) behind 0.7
    assert found["image_r_precision"] == pytest.approx(100 * 2 / 3) and found["image_r1"] == pytest.approx(100 * 2 / 3)
    assert not found["partial"] and (found["images"], found["images_of_benchmark"]) == (3, 3)
    assert entries("cxc", bank, scores, monkeypatch)["text_r1"] == 50


def test_a_partial_corpus(monkeypatch):
    """Without image 2 and its caption: they are no true items of others either, and caption 20 is no query."""
    bank = bank_of(["1", "elsewhere", "3"], ["10", "11", "no-id", "30"], torch.tensor([0, 0, 1, 2]))
    scores = torch.tensor([[0.9, 0.8, 0.85, 0.7], [0.2, 0.9, 0.5, 0.9], [0.3, 0.2, 0.1, 0.6]])
    found = entries("eccv", bank, scores, monkeypatch)
    assert found["partial"] and (found["images"], found["captions"]) == (2, 3)
    assert (found["images_of_benchmark"], found["captions_of_benchmark"]) == (3, 4)
    assert (found["text_queries"], found["image_queries"]) == (2, 2)
    assert (found["text_r_precision"], found["text_map_at_r"]) == (100.0, 100.0)  # the strangers above them do not count
    assert found["image_r1"] == 50.0  # caption 30 scores 0.7 with image 1 and 0.6 with its own; caption 20 is no query
    results = {"split": "test", "eccv": found, "pairs_scored": 0}
    assert "partial: 2 of 3 images, 3 of 4 captions" in results_table(results)


def test_other_ids_are_refused(monkeypatch):
    owner, scores = torch.tensor([0, 0, 1]), torch.zeros(2, 3)
    with pytest.raises(UserError, match=r"none of COCO's test images .*'red'.*Karpathy"):
        entries("eccv", bank_of(["red", "green"], ["10", "11", "30"], owner), scores, monkeypatch)
    with pytest.raises(UserError, match=r"captions\.json in the shards has none of them .*'a-0'"):
        entries("cxc", bank_of(["1", "3"], ["a-0", "a-1", "b-0"], owner), scores, monkeypatch)
    with pytest.raises(UserError, match="id 20 to a caption of image 1, in COCO it belongs to image 2: these are not"):
        entries("cxc", bank_of(["1", "3"], ["10", "20", "30"], owner), scores, monkeypatch)
    with pytest.raises(UserError, match="in one direction no query with a true item"):
        entries("cxc", bank_of(["2", "7"], ["a", "b", "20"], torch.tensor([1, 1, 0])), scores, monkeypatch)


def test_on_the_command_line(corpus, tmp_path, capsys, monkeypatch):
    stand_in.write_matcher(tmp_path / "run" / "export")
    base = ["--checkpoint", tmp_path / "run", "--data", corpus, "--evaluators", "recall", "eccv", "cxc"]
    with pytest.raises(SystemExit):
        program.main([*map(str, base)])
    assert "none of COCO's test images is among the keys" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    with pytest.raises(SystemExit):
        program.main([*map(str, base)])
    assert "pip install 'tagsds[eccv]'" in capsys.readouterr().err
    known = Benchmark({i: i // 5 for i in range(40)}, {0: [0, 7], 3: [15]}, {7: [1, 0], 15: [3]})
    monkeypatch.setattr("tagsds.evaluators.relevance.load_benchmark", lambda _: known)
    load = program.load_bank

    def numbered(*args, **kwargs):  # the tiny corpus' captions with numbers for ids; sixth captions are in no benchmark
        bank, manifest = load(*args, **kwargs)
        places_of = {c: 5 * i + k for i in range(8) for k, c in enumerate(bank.captions_of_image[i].tolist()) if k < 5}
        bank.caption_ids = [str(places_of.get(c, "sixth")) for c in range(bank.num_captions)]
        return bank, manifest

    monkeypatch.setattr(program, "load_bank", numbered)
    program.main([*map(str, [*base, "--output", tmp_path / "r.json"])])
    results, printed = json.loads((tmp_path / "r.json").read_text()), capsys.readouterr().out
    assert not results["eccv"]["partial"] and results["eccv"]["text_queries"] == 2 and "rsum" in results["cxc"]
    assert "ECCV Caption, %" in printed and "CxC, %" in printed and "all of it" in printed
    assert results["provenance"]["evaluators"] == ["recall", "eccv", "cxc"]


def test_ids_are_read_from_shards(corpus):
    from tagsds.data.shards import load_bank

    bank, _ = load_bank(corpus, "test")
    assert bank.caption_ids[:6] == ["0-0", "0-1", "0-2", "0-3", "0-4", "1-0"] and len(bank.caption_ids) == bank.num_captions
    assert bank.to("cpu").caption_ids == bank.caption_ids
