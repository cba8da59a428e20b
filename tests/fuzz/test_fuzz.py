"""A thousand damaged files: each ends in a sentence or is harmless. `python -m tests.fuzz.run` does more of them."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from tests.fuzz import any_bytes, commands, damage, run


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path):
    outcomes = run.run_all(run.parse(["--count", "1000", "--seed", "0", "--failures", str(tmp_path / "failures")]))
    print(run.table(outcomes))
    bad = [outcome for outcome in outcomes if outcome.kind in run.FAILURES]
    assert bad == [], "\n".join(f"--replay {o.case}: {o.kind}, {o.target}, {o.damage}: {o.text[-400:]}" for o in bad[:5])
    assert len(outcomes) == 1000
    assert {one.kind for one in outcomes} == {"sentence", "equal", "legal"}


def test_damage_follows_from_the_seed():
    texts = b'{"a": [1, 2.5, "x"], "b": {"c": null}}'
    for kind in dict.fromkeys((*damage.ANY, damage.json_value, damage.yaml_text)):
        first, again = (kind(random.Random("1/2"), texts, [b"other"]) for _ in range(2))
        assert first == again, kind.__name__


def test_the_bomb_unpacks():
    """A gigabyte comes out of it: a reader that unpacked shards would meet the bound."""
    bomb = any_bytes.gzip_bomb()
    assert bomb[:2] == gzip.compress(b"")[:2] and len(bomb) < 4 << 20
    unpacker, out = zlib.decompressobj(wbits=31), 0
    rest = bomb
    while rest and out < run.MEMORY_BYTES:
        out += len(unpacker.decompress(rest, 1 << 24))
        rest = unpacker.unconsumed_tail
    assert out >= run.MEMORY_BYTES


def test_what_is_a_failure(monkeypatch, tmp_path):
    """The judge itself: a loader that leaks, hangs, takes memory or returns something else is found out."""
    import signal

    from tagsds.errors import UserError
    from tests.fuzz import targets

    def case(load, guarded=False):
        def make(folder):
            folder.mkdir(parents=True)
            (folder / "a.txt").write_text("sound")

        seen = []

        def first_undamaged(folder):
            seen.append(folder)
            return "sound" if len(seen) == 1 else load(folder)

        monkeypatch.setattr(targets, "TARGETS", (targets.Target("t", make, first_undamaged, ("*",), guarded=guarded),))
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return run.run_case(run.Bench(place), 0, 0, "").kind

    def says(text):
        def load(_):
            raise UserError(text)

        return load

    def waits(_):
        while True:
            pass

    def hides_memory(_):
        try:
            return bytearray(4 << 30)
        except MemoryError as error:
            raise UserError("something; copy it again.") from error

    before = signal.signal(signal.SIGPROF, run.alarmed)
    monkeypatch.setattr(run, "SECONDS", 0.2)
    try:
        assert case(says("a.txt is damaged; copy it again.")) == "sentence"
        assert case(says("two\nlines")) == "traceback"
        assert case(lambda _: {}["a"]) == "traceback"
        assert case(lambda _: "sound") == "equal"
        assert case(lambda _: "other") == "legal" and case(lambda _: "other", guarded=True) == "changed"
        assert case(waits) == "hang"
        assert case(hides_memory) == "memory"
    finally:
        signal.signal(signal.SIGPROF, before)


def test_no_command_shows_a_traceback(tmp_path):
    counts, bad = commands.run_all(tmp_path, 24, 0)
    assert bad == [] and counts.total() == 24
