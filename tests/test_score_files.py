"""tagsds-evaluate with its scores in files: the figures of the table in memory, runs that go on, and what the user is told."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsds import evaluate as program
from tagsds.evaluators import protocol
from tagsds.ranks import World
from tagsds.scoring import table
from tests import stand_in
from tests import tiny_corpus as tiny
from tests.launch import run_two

FIGURES = ("recalls", "shared_captions", "examples", "score_histogram", "images", "captions")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_shards(tmp_path_factory.mktemp("corpus") / "shards")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pair encoder and two matchers."""
    folder = tmp_path_factory.mktemp("runs")
    tiny.write_checkpoint(folder / "encoder" / "export")
    for seed in (1, 2):
        stand_in.write_matcher(folder / f"matcher-{seed}" / "export", seed=seed)
    return folder


def evaluate(run, corpus, output, *arguments) -> dict:
    program.main([str(a) for a in ("--checkpoint", run, "--data", corpus, "--output", output, *arguments)])
    return json.loads(output.read_text())


@pytest.mark.parametrize("kind", ["encoder", "matcher-1"])
def test_figures_are_those_of_the_table_in_memory(kind, runs, corpus, tmp_path):
    plain = evaluate(runs / kind, corpus, tmp_path / "plain.json")
    kept = evaluate(runs / kind, corpus, tmp_path / "kept.json", "--scores", tmp_path / "scores")
    passing = evaluate(runs / kind, corpus, tmp_path / "passing.json", "--score-table-gib", 0)
    for key in (*FIGURES, "pairs_scored"):
        assert plain[key] == kept[key] == passing[key]
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["scores.json", "scores.npy"]
    assert np.load(tmp_path / "scores" / "scores.npy").shape == (8, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", "passing.json", "plain.json", "scores"]
    again = evaluate(runs / kind, corpus, tmp_path / "again.json", "--scores", tmp_path / "scores")
    assert again["pairs_scored"] == 0 and all(again[key] == plain[key] for key in FIGURES)


@pytest.fixture
def killed(runs, corpus, tmp_path, monkeypatch):
    """Scores in blocks of three images, of which the first two are there."""
    monkeypatch.setattr(table, "BLOCK", 3)
    real, calls = protocol.score_matrix, []

    def pulled(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(protocol, "score_matrix", pulled)
    with pytest.raises(KeyboardInterrupt):
        evaluate(runs / "encoder", corpus, tmp_path / "first.json", "--scores", tmp_path / "scores")
    monkeypatch.setattr(protocol, "score_matrix", real)
    assert len(list((tmp_path / "scores").glob("block-*.npy"))) == 2
    return tmp_path / "scores"


def test_a_killed_run_goes_on(killed, runs, corpus, tmp_path):
    plain = evaluate(runs / "encoder", corpus, tmp_path / "plain.json")
    found = evaluate(runs / "encoder", corpus, tmp_path / "found.json", "--scores", killed)
    assert found["pairs_scored"] == 2 * 40 and found["recalls"] == plain["recalls"]


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: b"", lambda data: b"x" + data[1:]])
def test_a_damaged_block_is_scored_anew(damage, killed, runs, corpus, tmp_path):
    plain = evaluate(runs / "encoder", corpus, tmp_path / "plain.json")
    block = killed / "block-000000003.npy"
    block.write_bytes(damage(block.read_bytes()))
    found = evaluate(runs / "encoder", corpus, tmp_path / "found.json", "--scores", killed)
    assert found["pairs_scored"] == (3 + 2) * 40 and found["recalls"] == plain["recalls"]


@pytest.mark.parametrize(
    ("change", "named"), [(["--first", 7], "images 8 where"), (["--captions-per-image", 1], "captions_per_image 5 where")]
)
def test_scores_of_another_evaluation(change, named, killed, runs, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(runs / "encoder", corpus, tmp_path / "other.json", "--scores", killed, *change)
    message = capsys.readouterr().err
    assert named in message and "or name another --scores" in message and "Traceback" not in message


def test_scores_of_other_weights(runs, corpus, tmp_path, capsys):
    evaluate(runs / "matcher-1", corpus, tmp_path / "one.json", "--scores", tmp_path / "scores")
    with pytest.raises(SystemExit):
        evaluate(runs / "matcher-2", corpus, tmp_path / "two.json", "--scores", tmp_path / "scores")
    assert "scores.json has weights" in capsys.readouterr().err


def test_a_size_below_nothing(runs, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate(runs / "matcher-1", corpus, tmp_path / "one.json", "--score-table-gib", -1)
    assert "--score-table-gib is -1.0; give GiB" in capsys.readouterr().err


def test_members_of_an_ensemble_have_files_of_their_own(runs, corpus, tmp_path):
    arguments = ["--ensemble", runs / "matcher-2"]
    plain = evaluate(runs / "matcher-1", corpus, tmp_path / "plain.json", *arguments)
    kept = evaluate(runs / "matcher-1", corpus, tmp_path / "kept.json", *arguments, "--scores", tmp_path / "scores")
    assert kept["ensemble"] == plain["ensemble"] and kept["recalls"] == plain["recalls"]
    assert len(list((tmp_path / "scores").glob("**/scores.npy"))) == 2


def test_two_processes_give_the_same_figures(runs, corpus, tmp_path):
    plain = evaluate(runs / "matcher-1", corpus, tmp_path / "plain.json")
    options = ["--checkpoint", runs / "matcher-1", "--data", corpus, "--scores", tmp_path / "scores"]
    run_two(stand_in.__file__, *options, "--output", tmp_path / "two.json")
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["recalls"] == plain["recalls"] and found["pairs_scored"] == plain["pairs_scored"]


def test_ranks_write_blocks_of_their_own(tmp_path, monkeypatch):
    """Two ranks, as threads that wait for each other, fill a table of which one block is there."""
    monkeypatch.setattr(table, "BLOCK", 3)
    scores, together, scored = np.random.default_rng(0).standard_normal((11, 5), np.float32), threading.Barrier(2), []

    class Rank(World):
        def wait(self) -> None:
            together.wait(30)

    def fill(rank: int):
        def score(rows):
            scored.append((rank, rows.tolist()))
            return torch.from_numpy(scores[rows])

        return table.ScoreFiles(tmp_path, {"weights": "w"}, 1.0, Rank(rank, 2)).fill(score, 11, 5, encodes_apart=False)

    np.save(tmp_path / "block-000000003.npy", scores[3:6])
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fill, range(2))
    assert sorted(scored) == [(0, [0, 1, 2]), (0, [9, 10]), (1, [6, 7, 8])]
    assert first[0].numpy().tobytes() == scores.tobytes() and second[0] is None
    assert first[1] == second[1] == 8 and sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.npy"]


def test_blocks_of_a_matcher_are_large():
    """It encodes all captions for each; a block never exceeds the memory that is allowed, but for the smallest one."""
    files = table.ScoreFiles(Path("scores"), {}, 4.0, World())
    assert files.block_images(113_287, 566_435, encodes_apart=True) == 1792  # 3.8 GiB
    assert files.block_images(5_000, 25_000, encodes_apart=True) == 512
    assert files.block_images(8, 40, encodes_apart=True) == 128
    assert files.block_images(8, 40, encodes_apart=False) == 50
