"""Model cards: facts in, text out, a row an evaluation."""

import json

import pytest
import yaml

from tagsds.errors import UserError
from tagsds.models.card import COLUMNS, Card, read_card, record_recalls


def card():
    return Card(
        "tagsds_uniter",
        recipe={"recipe": "tagsdc-base-coco", "steps": "5000 of 5000"},
        data={"corpus": "coco", "packed from": "uniter-lmdb"},
        notes=["one note"],
        commit="abc123",
    )


def recalls(first):
    return {name: first + i for i, name in enumerate(COLUMNS)}


def front_matter(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_text_names_recipe_data_and_commit(tmp_path):
    card().write(tmp_path)
    head, body = front_matter((tmp_path / "README.md").read_text())
    assert head == {"library_name": "transformers", "tags": ["image-text-retrieval", "tagsds"]}
    for line in ("# tagsdc-base-coco", "| steps | 5000 of 5000 |", "| packed from | uniter-lmdb |", "- one note", "commit abc123."):
        assert line in body.replace("\n\n", "\n")
    assert "Retrieval" not in body and read_card(tmp_path) == card()


def test_each_evaluation_adds_or_replaces_its_row(tmp_path):
    card().write(tmp_path)
    data = tmp_path / "coco"
    assert record_recalls(tmp_path, "test", data, {"images": 1000, "recalls": recalls(10.0)})
    assert record_recalls(tmp_path, "test", data, {"images": 5000, "recalls": recalls(20.0)})
    assert record_recalls(tmp_path, "test", data, {"images": 1000, "recalls": recalls(30.04)})
    head, body = front_matter((tmp_path / "README.md").read_text())
    assert "| coco test, 1000 images | 30.0 | 31.0 | 32.0 | 33.0 | 34.0 | 35.0 | 36.0 |" in body
    assert "| coco test, 5000 images | 20.0 | 21.0 | 22.0 | 23.0 | 24.0 | 25.0 | 26.0 |" in body
    assert body.count("| coco test") == 2 and "40.0" not in body
    named = head["model-index"][0]
    assert named["name"] == "tagsdc-base-coco" and len(named["results"]) == 2
    result = named["results"][1]
    assert result["dataset"]["name"] == "coco test, 1000 images" and result["metrics"][0] == {"type": "text_r1", "value": 30.0}


def test_folders_without_a_card_stay_as_they_are(tmp_path):
    assert not record_recalls(tmp_path, "test", tmp_path, {"images": 5, "recalls": recalls(1.0)})
    assert list(tmp_path.iterdir()) == []
    card().write(tmp_path)
    assert not record_recalls(tmp_path, "test", tmp_path, {"edits": {}})  # no retrieval in this evaluation


def test_a_broken_card_is_named(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"kind": "tagsds_uniter", "strange": 1}))
    with pytest.raises(UserError, match=r"card.json is not the facts of a model card \('strange' is none of them\)"):
        read_card(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps({"kind": "tagsds_uniter", "recalls": [{"dataset": "a"}]}))
    with pytest.raises(UserError, match=r"card.json is not .* \(recalls\[0\] lacks 'figures'\); remove it, or export again"):
        read_card(tmp_path)
