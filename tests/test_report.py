"""The report: every section with its contents, and a sentence where something is absent."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagsds import evaluate, report
from tagsds.errors import UserError
from tagsds.evaluators.metrics import wilson
from tagsds.evaluators.recall import chance
from tagsds.reporting import plots, sections
from tagsds.reporting.pictures import data_uri, find_pictures
from tagsds.reporting.runs import read_log, read_run, read_runs
from tests import stand_in
from tests import tiny_corpus as tiny

VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use", "rect"}


class Page(HTMLParser):
    """Checks that elements close in order; keeps attributes that could load something, and the text by section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.loads: list[str] = []
        self.section, self.texts, self.pictures = "", {}, {}
        self.feed(html)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [v or "" for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data")]
        if tag == "section":
            self.section = values["id"]
        if tag == "img":
            self.pictures.setdefault(self.section, []).append(values["src"])
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.loads += [v or "" for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.stack.pop() == tag, tag

    def handle_data(self, data):
        self.texts[self.section] = self.texts.get(self.section, "") + data


def check_page(html: str) -> Page:
    """Well formed, and nothing is loaded from elsewhere."""
    page = Page(html)
    assert all(load.startswith(("#", "data:image/")) for load in page.loads), page.loads
    assert not re.search(r"https?://|//cdn|@import|<script|<link", html)
    assert "prefers-color-scheme: dark" in html
    return page


def write_log(path: Path, steps: int = 60) -> None:
    tags = ("loss/total", "loss/t2i", "loss/syn", "rank/true_above_image", "filter/written")
    lines = [
        json.dumps({"step": s, "time_s": 2.0 * s} | {tag: (i + 1) / s for i, tag in enumerate(tags)})
        for s in range(1, steps + 1)
    ]
    path.write_text("\n".join(lines) + "\n")


EXAMPLES = {
    "scores": {"true": [0.9, 0.8], "hard_image": [0.5, 0.6], "hard_caption": [0.4], "synthetic": [0.7, 0.85, 0.2]},
    "negatives": [
        {
            "image": tiny.key(1),
            "caption": "a <green> cat",
            "score": 0.8,
            "written": [
                {"score": 0.1, "words": [{"text": "a", "replaced": False, "suspicion": 0.02, "correction": None}]},
                {
                    "score": 0.95,
                    "words": [
                        {"text": "a", "replaced": False, "suspicion": 0.02, "correction": "hidden"},
                        {"text": "small", "replaced": False, "suspicion": 0.7, "correction": "small"},
                        {"text": "purple", "replaced": True, "suspicion": 0.9, "correction": "green"},
                        {"text": "kit", "replaced": True, "suspicion": None, "correction": None},
                        {"text": "##ten", "replaced": True, "suspicion": 0.5, "correction": None},
                    ],
                },
            ],
        },
        {"image": "not-in-the-shards", "caption": "a tree", "score": 0.5, "written": []},
    ],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_shards(tmp_path_factory.mktemp("corpus") / "shards")


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Two stages with everything; the second alone has negatives."""
    root = tmp_path_factory.mktemp("runs")
    edits = tiny.write_edits(root / "edits" / "replace_obj.json")
    for number, name in enumerate(("tags", "tags-dc")):
        run = root / name
        tiny.write_checkpoint(run / "export", initializer_range=0.3 + 0.3 * number)
        evaluate.main(["--checkpoint", str(run), "--data", str(corpus), "--pairs", str(edits)])
        write_log(run / "log.jsonl", 60 if number else 10)
        (run / "config.yaml").write_text(f"recipe: {name}-tiny\nseed: 4{number}\ndata: {corpus}\n")
    (root / "tags-dc" / "examples.json").write_text(json.dumps(EXAMPLES))
    return [root / "tags", root / "tags-dc"]


def test_a_page_with_everything(runs, tmp_path, capsys):
    output = tmp_path / "deep" / "report.html"
    report.main([*map(str, runs), "--output", str(output)])
    assert "written to" in capsys.readouterr().out
    html = output.read_text()
    page = check_page(html)
    assert 'class="absent"' not in html

    assert "tags-dc-tiny" in page.texts["runs"] and "41" in page.texts["runs"] and "2.0 min" in page.texts["runs"]
    for run in runs:
        recalls = json.loads((run / "results-test.json").read_text())["recalls"]
        assert f"{recalls['rsum']:.1f}" in page.texts["recall"]
        assert run.name in page.texts["recall"]
    assert "8 images, 40 captions" in page.texts["recall"] and "chance" in page.texts["recall"]
    assert "replace obj" in page.texts["edits"] and "8 pairs" in page.texts["edits"]
    for tag in ("loss/total", "loss/t2i", "loss/syn", "rank/true_above_image", "filter/written"):
        assert tag in page.texts["curves"]
    assert html.count("<svg") == 5 + 1 + 3  # curves, bars, distributions (training, and two evaluations)
    assert "written negatives" in page.texts["scores"] and "all other pairs" in page.texts["scores"]

    assert len(page.pictures["rankings"]) >= 8 * 5
    assert all(p.startswith("data:image/") for p in page.pictures["rankings"])
    assert html.count('<figure class="true">') == 8  # every ranking frames the true image once
    assert tiny.captions_of(0)[0] in page.texts["rankings"]

    assert len(page.pictures["negatives"]) == 1 and "not-in-the-shards" in page.texts["negatives"]
    assert "None of its sentences passed" in page.texts["negatives"]
    assert "weights_sha256" in page.texts["sources"]


def test_the_words_of_a_written_negative(runs):
    html = report.render(read_runs(runs))
    assert "a &lt;green&gt; cat" in html and "<green>" not in html  # nothing in a caption is taken for markup
    marked = '<span class="word replaced" style="--p: 0.900" title="suspicion 0.90">purple</span><rt>green</rt></ruby>'
    assert f"<ruby>{marked}" in html
    assert ">small</span><rt>=</rt>" in html  # suspected, but the model would leave it
    assert "hidden" not in re.sub(r"overflow[^;]*hidden|aria-hidden", "", html)  # neither replaced nor suspected
    unknown = '<span class="word replaced">kit</span>'  # no suspicion known: no shade
    assert f' {unknown}<span class="word joined replaced" style="--p: 0.500" title="suspicion 0.50">ten</span>' in html
    assert html.index("0.950") < html.index("0.100")  # the hardest sentence first
    assert html.count('class="score above"') == 1  # 0.95 is above the caption's 0.8, 0.1 is not


def test_missing_sections_say_so(tmp_path):
    run = tmp_path / "young"
    run.mkdir()
    write_log(run / "log.jsonl")
    page = check_page(report.render(read_runs([run])))
    for section, sentence in {
        "recall": "No run has been evaluated",
        "edits": "on edited captions",
        "scores": "No scores were recorded",
        "rankings": "No evaluation has recorded rankings",
        "negatives": "No run has recorded written negatives",
        "sources": "no evaluation whose sources",
    }.items():
        assert sentence in page.texts[section]
    assert "loss/total" in page.texts["curves"]


def test_results_alone_are_enough(runs, tmp_path):
    run = tmp_path / "moved"
    run.mkdir()
    results = json.loads((runs[0] / "results-test.json").read_text())
    results["provenance"]["data"] = str(tmp_path / "gone")
    results["coco_1k"] = results["recalls"]
    results["shared_captions"] = 17
    results["provenance"] |= {"head": "itm", "dtype": "bf16"}
    del results["edits"]
    (run / "results-test.json").write_text(json.dumps(results))
    page = check_page(report.render(read_runs([run])))
    assert "No run has a training log" in page.texts["curves"]
    assert "no picture in the shards" in page.texts["rankings"] and "rankings" not in page.pictures
    assert "COCO 1K, mean of five folds" in page.texts["recall"]
    assert "17 captions stand word for word" in page.texts["recall"]
    assert "scored by the itm head, scored in bf16, not exact" in page.texts["recall"]
    with_pictures = check_page(report.render(read_runs([run]), data=tiny.write_shards(tmp_path / "shards")))
    assert with_pictures.pictures["rankings"]
    assert "No run recorded the scores of its mined and written negatives" in page.texts["scores"]


def tables_of(folders, colours):
    """Those of section "recall", as they reach the template."""
    (section,) = [s for s in sections.evaluations(read_runs(folders), colours) if s["id"] == "recall"]
    return [part["table"] for part in section["parts"]]


def test_sets_of_another_size_stand_in_another_table(runs, corpus, tmp_path):
    tiny.write_checkpoint(tmp_path / "small" / "export")
    evaluate.main(["--checkpoint", str(tmp_path / "small"), "--data", str(corpus), "--first", "4"])
    tables = tables_of([*runs, tmp_path / "small"], {"tags": 1, "tags-dc": 2, "small": 3})
    small, both = sorted(tables, key=lambda table: len(table.rows))  # a row a run, and one of chance
    assert (len(small.rows), len(both.rows)) == (2, 3) and ": 4 images" in small.title and ": 8 images" in both.title
    assert not any(cell.best for row in small.rows for cell in row.cells)
    assert sum(cell.best for row in both.rows for cell in row.cells) >= 9  # one at least in each column
    assert not any(cell.best for cell in both.rows[-1].cells) and both.rows[-1].chance


def test_an_ensemble_and_a_reranking(corpus, runs, tmp_path):
    stand_in.write_matcher(tmp_path / "vsrn" / "export")
    tiny.write_checkpoint(tmp_path / "reranked" / "export")
    options = ["--ensemble", runs[1], "--shortlist", tmp_path / "vsrn", "--rerank", 2, 5]
    evaluate.main([*map(str, ["--checkpoint", tmp_path / "reranked", "--data", corpus, *options])])
    results = json.loads((tmp_path / "reranked" / "results-test.json").read_text())
    single, ensemble, table = tables_of([tmp_path / "reranked"], {"reranked": 1})
    size = "8 images, 40 captions"
    assert (single.title, ensemble.title) == (f"Split “test”: {size}", f"Split “test”, ensembles: {size}")
    assert single.rows[0].cells[6].text == f"{results['recalls']['rsum']:.1f}"
    assert ensemble.rows[0].cells[6].text == f"{results['ensemble']['recalls']['rsum']:.1f}"
    assert ensemble.rows[0].note == "average of reranked, tags-dc"
    assert [row.label for row in table.rows] == [
        "the matcher alone", "its first 2, reranked", "its first 5, reranked", "every pair",
    ]  # fmt: skip
    assert [row.cells[9].text for row in table.rows] == ["–", *(str(row["pairs_scored"]) for row in results["rerank"]), "320"]
    page = check_page(report.render(read_runs([tmp_path / "reranked"])))
    for text in ("average of reranked, tags-dc", "its first 5, reranked", "every pair", "in the list, %"):
        assert text in page.texts["recall"]
    assert f"{results['rerank'][0]['recalls']['rsum']:.1f}" in page.texts["recall"]
    results |= {"rerank": results["rerank"][:1]}
    for key in ("recalls", "exact", "examples", "ensemble", "score_histogram", "shared_captions"):
        del results[key]
    (tmp_path / "reranked" / "results-test.json").write_text(json.dumps(results))
    page = check_page(report.render(read_runs([tmp_path / "reranked"])))
    assert "its first 2, reranked" in page.texts["recall"] and "every pair" not in page.texts["recall"]
    assert "there is no results file with recalls" not in page.texts["recall"]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "tags").mkdir(parents=True)
        write_log(tmp_path / parent / "tags" / "log.jsonl")
    assert [run.name for run in read_runs([tmp_path / "a" / "tags", tmp_path / "b" / "tags"])] == ["a/tags", "b/tags"]


def test_a_log_with_a_resumption(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [(1, 10, 5.0), (2, 20, 4.0), (3, 30, 3.0), (2, 5, 4.5), (3, 12, float("nan"))]
    lines = [json.dumps({"step": s, "time_s": t, "loss/total": v, "note": "x"}) for s, t, v in rows]
    path.write_text("\n".join(lines) + '\n{"step": 4, "loss/to')
    log, steps, seconds = read_log(path)
    assert list(log) == ["loss/total"] and (steps, seconds) == (3, 42)
    assert log["loss/total"][2] == 4.5 and np.isnan(log["loss/total"][3])
    run = read_run(tmp_path)
    (group,) = sections.curve_groups([run], {run.name: 1})
    assert group["panels"][0]["bad"] == [run.name]
    path.write_text("no json\n" + path.read_text())
    with pytest.raises(UserError, match=r"log\.jsonl, line 1"):
        read_log(path)


def test_bad_runs(tmp_path, runs, capsys):
    with pytest.raises(UserError, match="does not exist"):
        read_runs([tmp_path / "no"])
    with pytest.raises(UserError, match="holds neither results"):
        read_runs([tmp_path])
    for content, message in (("{", "is not valid JSON"), ("{}", "not a results file")):
        (tmp_path / "results-x.json").write_text(content)
        with pytest.raises(UserError, match=message):
            read_runs([tmp_path])
    (tmp_path / "results-x.json").write_text(json.dumps({"format": "tagsds-results", "version": 9}))
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--output", str(tmp_path / "r.html")])
    assert "version 9" in capsys.readouterr().err and not (tmp_path / "r.html").exists()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        report.write_report(runs, tmp_path / "r.html", data=tmp_path)
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        report.write_report(runs, tmp_path)


def test_pictures_are_found_and_made_small(corpus):
    found = find_pictures(corpus, [tiny.key(0), tiny.key(7), "nowhere"], ["test"])
    assert set(found) == {tiny.key(0), tiny.key(7)}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.save(stream, "PNG")
    uri = data_uri(stream.getvalue())
    assert uri.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (260, 173)
    assert data_uri(found[tiny.key(0)]).startswith("data:image/png")
    assert data_uri(b"no picture") is None


def test_chance_is_exact_on_a_small_case():
    # two images with two captions each: the best own caption is first with probability 1/2, second 1/3, third 1/6
    figures = chance(2, 4)
    assert figures[0] == pytest.approx(50) and figures[3] == pytest.approx(50)
    assert figures[1] == figures[2] == figures[4] == figures[5] == 100
    assert figures[7:] == [1, 1.5]
    big = chance(1000, 5000)
    assert big[0] == pytest.approx(0.1) and big[3] == pytest.approx(0.1)
    assert big[7] == pytest.approx(5000 * (1 - 0.5**0.2), rel=0.01)


def test_helpers_of_the_plots():
    assert wilson(50.0, 100) == pytest.approx((40.4, 59.6), abs=0.05)
    assert wilson(100.0, 8)[1] == pytest.approx(100)
    assert plots.thin(np.arange(10.0), 5).tolist() == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert plots.smooth(np.full(50, 3.0)) == pytest.approx(3.0)
    assert plots.smooth(np.arange(200.0))[50:150] == pytest.approx(np.arange(50.0, 150.0))  # no lag
    assert plots.smooth(np.array([4.0])).tolist() == [4.0]
    one, two = (plots.curves({"a": {1: 1.0, 2: 0.5}}, {"a": 3}, "loss <x>") for _ in range(2))
    assert one == two  # the same plot has the same bytes
    assert "var(--s3)" in one and "var(--ink)" in one and "loss &lt;x>" in one
    assert not re.search(r"#0a0b|xmlns|<style|http", one)
