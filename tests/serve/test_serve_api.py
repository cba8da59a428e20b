"""The API of tagsds-serve against the Python interface behind it: every address, what it refuses, and what the listing shows."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

import tagsds
from tagsds.api import Change
from tagsds.serve import desk as desk_module
from tagsds.serve.desk import Desk, marks_of
from tagsds.serve.limits import MOST_BYTES, Limits
from tagsds.serve.listing import listing
from tests.serve.clients import client_of, ok

SENTENCE = "a red circle left of a blue square"


# --- the corpus ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(encoder):
    return Desk(encoder, None, "test", None, Limits())


@pytest.fixture(scope="module")
def client(desk):
    with client_of(desk) as client:
        yield client


@pytest.fixture(scope="module")
def with_matcher(encoder, matcher):
    desk = Desk(encoder, matcher, "test", None, Limits(shortlist=6))
    desk.warm()
    with client_of(desk) as client:
        yield client


def test_about(client, with_matcher):
    about = ok(client.get("/api/about"))
    assert about["model"] == {"name": "tagsdc", "kind": "tagsds_uniter"} and about["matcher"] is None
    assert (about["images"], about["captions"], about["split"], about["corpus"]) == (20, 100, "test", "world")
    assert all(about[name] for name in ("proofreads", "corrects", "writes", "aligns"))
    assert ok(with_matcher.get("/api/about"))["matcher"]["name"] == "vsrn"
    assert ok(client.get("/api/health")) == {"status": "ok", "waiting": 0}


def test_images_come_in_pages(client, encoder):
    first, second = (ok(client.get(f"/api/images?start={start}&count=8")) for start in (0, 16))
    assert [one["key"] for one in first["images"]] == list(encoder.keys[:8]) and first["total"] == 20
    assert [one["key"] for one in second["images"]] == list(encoder.keys[16:]) and second["start"] == 16
    found = ok(client.get("/api/images?contains=00001"))
    assert [one["key"] for one in found["images"]] == [key for key in encoder.keys if "00001" in key] and found["total"] == 11
    assert ok(client.get("/api/images?contains=zebra")) == {"total": 0, "start": 0, "images": []}
    assert ok(client.get("/api/images?start=900"))["images"] == []
    for bad in ("count=0", "count=101", "start=-1", f"contains={'x' * 201}", "count=many"):
        assert client.get(f"/api/images?{bad}").status_code == 422


def test_an_image_has_its_captions_and_regions(client, encoder, world):
    with tarfile.open(world / "test-000000.tar") as tar:
        key = encoder.keys[3]
        boxes = np.load(io.BytesIO(tar.extractfile(f"{key}.boxes.npy").read()))
        classes = np.load(io.BytesIO(tar.extractfile(f"{key}.classes.npy").read()))
        picture = tar.extractfile(f"{key}.image.png").read()
    image = ok(client.get(f"/api/image/{key}"))
    names = [encoder.gallery.manifest.class_names[n] for n in classes.argmax(1)]
    assert [region["name"] for region in image["regions"]] == names
    assert np.allclose([region["box"] for region in image["regions"]], boxes)
    assert image["captions"] == encoder.captions(key) and not image["drawn"]
    assert (image["previous"], image["next"]) == (encoder.keys[2], encoder.keys[4])
    assert image["alt"].startswith("Picture with ") and names[0] in image["alt"]
    found = client.get(f"/api/picture/{key}")
    assert found.content == picture and found.headers["content-type"] == "image/png"
    again = client.get(f"/api/picture/{key}", headers={"if-none-match": found.headers["etag"]})
    assert again.status_code == 304 and not again.content
    assert ok(client.get(f"/api/image/{encoder.keys[0]}"))["previous"] is None
    assert ok(client.get(f"/api/image/{encoder.keys[19]}"))["next"] is None
    for path in ("/api/image/nowhere", "/api/picture/nowhere"):
        missing = client.get(path)
        assert missing.status_code == 404 and missing.json()["error"].startswith("image 'nowhere' is not in split 'test'")


# --- the models ---------------------------------------------------------------------------------------------------------------


def test_pictures_for_a_sentence(client, encoder, monkeypatch):
    found = ok(client.post("/api/find/images", json={"sentence": SENTENCE, "k": 5}))
    expected = encoder.search(SENTENCE, 5, by="sentence")
    assert [hit["key"] for hit in found["hits"]] == [hit.key for hit in expected]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert [(stage["name"], stage["scored"]) for stage in found["stages"]] == [("encoder", 20)]
    assert all(hit["matcher_rank"] is None for hit in found["hits"]) and found["stages"][0]["milliseconds"] > 0
    monkeypatch.setattr(desk_module, "BLOCK", 7)  # the parts of long work are joined
    parts = ok(client.post("/api/find/images", json={"sentence": SENTENCE, "k": 5}))
    assert [hit["key"] for hit in parts["hits"]] == [hit.key for hit in expected]
    key = encoder.keys[0]  # a sentence that reads like a key is a sentence
    assert ok(client.post("/api/find/images", json={"sentence": key, "k": 1}))["hits"][0]["key"]


def test_the_encoder_reads_a_matchers_shortlist(with_matcher, encoder, matcher):
    found = ok(with_matcher.post("/api/find/images", json={"sentence": SENTENCE, "k": 4}))
    first = matcher.search(SENTENCE, 6, by="sentence")
    expected = encoder.search(SENTENCE, 4, by="sentence", among=[hit.number for hit in first])
    assert [hit["key"] for hit in found["hits"]] == [hit.key for hit in expected]
    places = {hit.key: place for place, hit in enumerate(first, 1)}
    assert [hit["matcher_rank"] for hit in found["hits"]] == [places[hit.key] for hit in expected]
    assert [(s["name"], s["model"], s["scored"]) for s in found["stages"]] == [("matcher", "vsrn", 20), ("encoder", "tagsdc", 6)]
    assert len(ok(with_matcher.post("/api/find/images", json={"sentence": SENTENCE, "k": 9}))["hits"]) == 9  # more than the list


def test_sentences_for_a_picture(with_matcher, client, encoder, matcher):
    key = encoder.keys[2]
    found = ok(client.post("/api/find/sentences", json={"image": key, "k": 100}))
    expected = encoder.search(key, 100, by="image")
    assert [hit["sentence"] for hit in found["hits"]] == [hit.caption for hit in expected]
    assert sorted(hit["sentence"] for hit in found["hits"] if hit["own"]) == sorted(encoder.captions(key))
    short = ok(with_matcher.post("/api/find/sentences", json={"image": f"{key}.jpg", "k": 3}))
    among = [hit.number for hit in matcher.search(key, 6, by="image")]
    assert [hit["sentence"] for hit in short["hits"]] == [hit.caption for hit in encoder.search(key, 3, by="image", among=among)]


def test_a_matcher_alone_finds_and_does_no_more(matcher):
    client = client_of(Desk(matcher, None, "test", None, Limits()))
    about = ok(client.get("/api/about"))
    assert not any(about[name] for name in ("proofreads", "corrects", "writes", "aligns"))
    found = ok(client.post("/api/find/images", json={"sentence": SENTENCE, "k": 3}))
    assert [hit["key"] for hit in found["hits"]] == [hit.key for hit in matcher.search(SENTENCE, 3, by="sentence")]
    assert found["stages"][0]["name"] == "matcher"
    refused = client.post("/api/align", json={"image": matcher.keys[0], "sentence": SENTENCE})
    assert refused.status_code == 422 and "only the pair encoder aligns" in refused.json()["error"]


def test_proofreading(client, encoder):
    key = encoder.keys[4]
    found = ok(client.post("/api/proofread", json={"image": key, "sentence": SENTENCE}))
    expected = encoder.proofread(key, SENTENCE)
    assert [word["text"] for word in found["words"]] == SENTENCE.split()
    for word, other in zip(found["words"], expected, strict=True):
        assert word == pytest.approx(vars(other), abs=1e-6)
    assert found["score"] == pytest.approx(float(encoder.score(key, SENTENCE)), abs=1e-6)


def test_alignment(client, encoder):
    key, sentence = encoder.keys[4], "red red, RED circle"
    found = ok(client.post("/api/align", json={"image": key, "sentence": sentence}))
    expected = encoder.align(key, sentence)
    assert [sentence[word["start"] : word["end"]] for word in found["words"]] == ["red", "red", ",", "RED", "circle"]
    assert [word["start"] for word in found["words"]] == [0, 4, 7, 9, 13]
    for word, (_, weights) in zip(found["words"], expected, strict=True):
        assert word["weights"] == pytest.approx(weights.tolist(), abs=1e-6)
    assert found["regions"] == ok(client.get(f"/api/image/{key}"))["regions"]


def test_writing(client, encoder):
    key, caption = encoder.keys[1], encoder.captions(encoder.keys[1])[0]
    asked = {"image": key, "sentence": caption, "n": 5, "seed": 3, "most_words": 2, "max_score": 0.999, "without": ["spelling"]}
    found = ok(client.post("/api/write", json=asked))
    rules = tagsds.Rules(most_words=2, max_score=0.999, without=("spelling",))
    expected = encoder.write_negatives(key, caption, 5, seed=3, rules=rules)
    assert [one["text"] for one in found["negatives"]] == [one.text for one in expected] and found["negatives"]
    assert (found["written"], found["spare"]) == (400, expected.spare) and found["score"] == pytest.approx(expected.score)
    assert {part["filter"]: part["count"] for part in found["dropped"]} == {k: len(v) for k, v in expected.dropped.items() if v}
    assert sum(part["count"] for part in found["dropped"]) + len(expected) + expected.spare == 400
    for part in found["dropped"]:
        assert part["why"] and set(part["sentences"]) <= set(expected.dropped[part["filter"]])
    for one in found["negatives"]:
        assert [one["text"][a:b].lower() for a, b in one["marks"]] == [change["new"].lower() for change in one["changes"]]
        assert len(one["changes"]) <= 2
    assert ok(client.post("/api/write", json=asked))["negatives"] == found["negatives"]


def test_marks_by_hand():
    def change(old, new, start):
        return Change(old, new, start, start + len(old), "object")

    assert marks_of("Three dogs and a dog", [change("A", "three", 0), change("cat", "dogs", 2)]) == [[0, 5], [6, 10]]
    assert marks_of("a surf board", [change("skateboard", "surf board", 2)]) == [[2, 12]]
    assert marks_of("nothing of it", [change("skateboard", "surf", 2)]) == []


# --- what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("find/images", {"sentence": SENTENCE, "k": 0}, 422, "k: "),
        ("find/images", {"sentence": SENTENCE, "k": 201}, 422, "k: "),
        ("find/images", {"sentence": ""}, 422, "sentence: "),
        ("find/images", {"sentence": "  "}, 422, "a sentence is empty"),
        ("find/images", {"sentence": "x" * 1001}, 422, "sentence: "),
        ("find/images", {"sentence": "red " * 60}, 422, "max_position_embeddings is 40"),
        ("find/images", {"sentence": 3}, 422, "sentence: "),
        ("find/images", {}, 422, "sentence: Field required"),
        ("find/images", {"sentence": SENTENCE, "kk": 3}, 422, "kk: "),
        ("find/sentences", {"image": "nowhere"}, 404, "image 'nowhere' is not in split 'test'"),
        ("find/sentences", {"image": "a\0b"}, 404, "is not in split"),
        ("proofread", {"image": "nowhere", "sentence": SENTENCE}, 404, "is not in split"),
        ("align", {"image": "x" * 201, "sentence": SENTENCE}, 422, "image: "),
        ("write", {"image": "test-000000", "sentence": SENTENCE, "n": 51}, 422, "n: "),
        ("write", {"image": "test-000000", "sentence": SENTENCE, "n": 0}, 422, "n: "),
        ("write", {"image": "test-000000", "sentence": SENTENCE, "max_score": 2}, 422, "max_score: "),
        ("write", {"image": "test-000000", "sentence": SENTENCE, "without": ["annotated"]}, 422, "without: "),
        ("write", {"image": "test-000000", "sentence": SENTENCE, "seed": -1}, 422, "seed: "),
        ("nothing", {}, 404, "there is nothing at this address"),
    ],
)
def test_bad_input_gets_a_sentence(client, path, body, status, says):
    refused = client.post(f"/api/{path}", json=body)
    assert refused.status_code == status and list(refused.json()) == ["error"], refused.text
    assert says in refused.json()["error"] and refused.json()["error"].endswith(".")


def test_requests_that_are_no_requests(client):
    for content in (b"", b"{", b"[1]", b"\xff\xfe", b"null"):
        refused = client.post("/api/proofread", content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 422 and refused.json()["error"]
    long = client.post("/api/proofread", content=b" " * (MOST_BYTES + 1))
    assert long.status_code == 413 and f"{MOST_BYTES} bytes" in long.json()["error"]
    parts = client.post("/api/proofread", content=iter([b" " * MOST_BYTES, b" "]))  # chunked: no length is said
    assert parts.status_code == 413
    assert client.post("/api/proofread", content=b"{}", headers={"content-length": "-5"}).status_code == 413
    assert client.get("/api/find/images").status_code == 405 and "error" in client.get("/api/find/images").json()
    assert client.get("/api/picture/..%2F..%2Fsetup.py").status_code == 404
    assert client.get("/page/..%2F..%2Fapp.py").status_code == 404


def test_other_hosts_and_other_sites_are_refused(desk, client):
    assert client.get("/api/about", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/about", headers={"host": "127.0.0.1:8000"}).status_code == 200
    ask = {"json": {"sentence": SENTENCE, "k": 1}}
    assert client.post("/api/find/images", **ask, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/api/find/images", **ask, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert client_of(desk, ()).get("/api/about", headers={"host": "any.example"}).status_code == 200
    for path in ("/", "/api", "/api/about", "/page/main.js", "/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and "default-src 'none'" in headers["content-security-policy"]


def test_a_fault_of_the_server_shows_nothing_of_it(desk, client, monkeypatch, caplog):
    def fault(*_):
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(desk, "proofread", fault)
    answer = client.post("/api/proofread", json={"image": "test-000000", "sentence": SENTENCE})
    assert answer.status_code == 500 and answer.json() == {"error": "an error of the server; its log has the details."}
    assert "secret of the house" in caplog.text
    assert ok(client.get("/api/health"))["waiting"] == 0


# --- what it says of itself ---------------------------------------------------------------------------------------------------


def test_the_listing_shows_every_address_and_loads_nothing(client):
    schema = ok(client.get("/api/openapi.json"))
    assert set(schema["paths"]) == {
        "/api/about", "/api/health", "/api/images", "/api/image/{key}", "/api/picture/{key}", "/api/find/images",
        "/api/find/sentences", "/api/proofread", "/api/align", "/api/write",
    }  # fmt: skip
    page = client.get("/api").text
    assert all(path in page for path in schema["paths"])
    assert "//" not in page.replace("<!doctype", "").replace("://", "?").replace("HOST/", "") and "<script" not in page
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404
    for methods in schema["paths"].values():
        for entry in methods.values():
            assert entry["summary"] and {"404", "422", "503", "504"} <= set(entry["responses"])
    schema["paths"]["/api/<script>x</script>"] = schema["paths"]["/api/about"]
    assert "<script>" not in listing(schema) and "&lt;script&gt;" in listing(schema)


def test_the_page_names_only_files_that_are_there(client):
    page = client.get("/").text
    assert "http:" not in page and "https:" not in page
    for name in ("style.css", "main.js", "icon.svg", "find.js", "dom.js"):
        found = client.get(f"/page/{name}")
        assert found.status_code == 200 and found.headers["cache-control"] == "no-cache"
        assert name == "icon.svg" or "http" not in found.text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in found.text


def test_a_desk_needs_a_corpus(encoder_run):
    with pytest.raises(tagsds.UserError, match="was loaded without a corpus"):
        Desk(tagsds.load(encoder_run, device="cpu"), None, "test", None, Limits())
