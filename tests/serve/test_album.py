"""Pictures of the page: where they come from, small ones, members of shards by their headers, and what stays in memory."""

from __future__ import annotations

import io

import pytest
from PIL import Image

import tagsds
from tagsds.data.shard_files import places_of_members, read_members
from tagsds.serve.album import Album, Picture, smaller
from tagsds.serve.desk import Desk
from tagsds.serve.limits import SIDE, Limits
from tagsds.serve.recent import Recent
from tests.serve.clients import client_of, ok


def test_pictures_of_a_folder_come_first_and_drawings_last(encoder, tmp_path, monkeypatch):
    stream = io.BytesIO()
    Image.new("RGB", (800, 400), "orange").save(stream, "JPEG")
    (tmp_path / f"{encoder.keys[1]}.jpg").write_bytes(stream.getvalue())
    (tmp_path / f"{encoder.keys[2]}.jpg").write_bytes(b"<svg onload=alert(1)>")
    desk = Desk(encoder, None, "test", tmp_path, Limits())
    client = client_of(desk)
    whole, small = client.get(f"/api/picture/{encoder.keys[1]}"), client.get(f"/api/picture/{encoder.keys[1]}?small=true")
    assert whole.content == stream.getvalue() and whole.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.content)).size == (SIDE, SIDE // 2)
    assert client.get(f"/api/picture/{encoder.keys[2]}").headers["content-type"] == "image/png"  # what is no picture is passed over
    known = Album.sample
    monkeypatch.setattr(Album, "sample", lambda self, row: {k: v for k, v in known(self, row).items() if "image" not in k})
    drawn = client.get(f"/api/picture/{encoder.keys[5]}?small=true")
    assert drawn.headers["content-type"].startswith("image/svg+xml") and drawn.text.startswith("<svg xmlns=")
    image = ok(client.get(f"/api/image/{encoder.keys[5]}"))
    assert image["drawn"] and all(region["name"] in drawn.text for region in image["regions"])
    assert "script-src 'self'" in drawn.headers["content-security-policy"]
    with pytest.raises(tagsds.UserError, match="is no folder"):
        Desk(encoder, None, "test", tmp_path / "none", Limits())


def test_small_pictures_stay_and_damaged_ones_too():
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, "PNG")
    picture = Picture.of(stream.getvalue(), "image/png")
    assert smaller(picture) is picture
    broken = Picture.of(stream.getvalue()[:40], "image/png")
    assert smaller(broken) is broken


def test_members_are_found_by_their_headers(world):
    path = world / "test-000000.tar"
    content, places = path.read_bytes(), places_of_members(path)
    whole = dict(read_members(path))
    assert sum(map(len, places.values())) == len(whole)
    for key, members in places.items():
        for member, (start, size) in members.items():
            assert content[start : start + size] == whole[f"{key}.{member}"]


def test_what_was_used_last_stays():
    made = []

    def make(value):
        made.append(value)
        return value

    kept = Recent(10, len)
    assert [kept.get(key, lambda key=key: make(key * 4)) for key in "aba"] == ["aaaa", "bbbb", "aaaa"]
    kept.get("c", lambda: make("cccc"))  # b leaves, the one unused for longest
    assert len(kept) == 2 and kept.total == 8
    kept.get("a", lambda: make("again"))
    assert made == ["aaaa", "bbbb", "cccc"]
    assert kept.get("big", lambda: make("x" * 11)) == "x" * 11 and kept.total == 8
    assert Recent(0, len).get("a", lambda: "aa") == "aa"
