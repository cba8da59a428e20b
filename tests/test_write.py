"""tagsds-write from end to end: what it writes, resumed, on two processes, and what the user is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import tagsds
from tagsds import write as program
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank, read_samples
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.evaluators.pairs_file import read_pairs
from tagsds.negatives.attested import Attested
from tagsds.negatives.balance import balanced
from tagsds.scoring.likelihood import pseudo_likelihood
from tests.launch import ROOT, free_port
from tests.programs import refusal
from tests.trained import save_run

SMALL = ["--split", "dev", "--number", "2", "--maskings", "4", "--refills", "4", "--attested", "0", "--above-true", "1"]


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tagsdc"
    return folder, save_run(folder, world)


def write(run: Path, world: Path, output: Path, *arguments: object) -> None:
    program.main(["--checkpoint", str(run), "--data", str(world), "--output", str(output), *SMALL, *map(str, arguments)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "negatives.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def written(run, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "out"
    write(run[0], world, folder)
    return folder


@pytest.fixture(scope="module")
def bank(world):
    return load_bank(world, "dev")[0]


def test_lines_say_what_was_changed(written, run, world, bank):
    assert sorted(files(written)) == ["figures.json", "negatives.jsonl"]
    found = lines(written)
    of_caption = Counter(entry["caption_id"] for entry in found)
    assert max(of_caption.values()) <= 2 and set(of_caption) <= set(bank.caption_ids)
    order = [list(bank.caption_ids).index(entry["caption_id"]) for entry in found]
    assert order == sorted(order)
    kinds = {}
    for path in sorted(world.glob("dev-*.tar")):
        for sample in read_samples([path]):
            for caption in json.loads(sample["captions.json"]):
                spans = [(a, b, span["kind"]) for span in caption["spans"] for a, b in span["chars"]]
                kinds[caption["id"]] = caption["text"], spans
    for entry in found:
        text, spans = kinds[entry["caption_id"]]
        assert entry["caption"] == text and entry["text"] != text and entry["changes"]
        for change in entry["changes"]:
            assert text[change["start"] : change["end"]] == change["old"]
            here = {kind for a, b, kind in spans if a < change["end"] and b > change["start"]}
            assert change["kind"] == (here.pop() if len(here) == 1 else "several" if here else "other")
        of_changes = {change["kind"] for change in entry["changes"]} - {"other"}
        assert entry["kind"] == (of_changes.pop() if len(of_changes) == 1 else "several" if of_changes else "other")
    retriever = tagsds.load(run[0], world, "cpu", split="dev")
    for entry in found[:: len(found) // 6]:
        scores = retriever.score(entry["image"], [entry["caption"], entry["text"]])[0].tolist()
        assert [entry["caption_score"], entry["score"]] == pytest.approx(scores, abs=2e-5)


def test_the_blind_margin_is_a_difference_of_likelihoods(written, run, world):
    tokenizer = load_tokenizer(world / "tokenizer")
    for entry in lines(written)[::40]:
        rows = [torch.tensor(tokenizer(entry[key])["input_ids"]) for key in ("caption", "text")]
        one = [float(pseudo_likelihood(run[1], Ragged.from_rows([row]), Vocabulary.of(tokenizer))) for row in rows]
        assert entry["blind"] == pytest.approx(one[0] - one[1], abs=1e-3)


def test_figures_count_the_lines(written, bank):
    found, figures = lines(written), json.loads((written / "figures.json").read_text())["figures"]
    assert figures["captions"] == bank.num_captions and figures["written"] == 16 * bank.num_captions
    assert figures["written"] == figures["kept"] + figures["spare"] + sum(figures["dropped"].values())
    assert figures["kept"] == len(found) and figures["kinds"] == {
        kind: n for kind in figures["kinds"] if (n := sum(entry["kind"] == kind for entry in found))
    }
    per = Counter(entry["caption_id"] for entry in found)
    assert figures["captions_with_fewer"] == sum(per[key] < 2 for key in bank.caption_ids)
    prefers = 100 * sum((entry["blind"] > 0) + 0.5 * (entry["blind"] == 0) for entry in found) / len(found)
    assert figures["blind_prefers_the_caption"] == pytest.approx(prefers, abs=0.01)
    above = 100 * sum(entry["score"] >= entry["caption_score"] for entry in found) / len(found)
    assert figures["scored_as_high_as_the_caption"] == pytest.approx(above, abs=0.01)


def test_interrupted_and_resumed_gives_the_same_bytes(written, run, world, tmp_path, monkeypatch, capsys):
    real, calls = program.Writing.write_block, []

    def pulled(self, *args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args[2:])
        return real(self, *args)

    monkeypatch.setattr(program.Writing, "write_block", pulled)
    with pytest.raises(KeyboardInterrupt):
        write(run[0], world, tmp_path / "out")
    assert len(list((tmp_path / "out" / "parts").glob("0*.json"))) == 2 and not (tmp_path / "out" / "figures.json").exists()
    again = []
    monkeypatch.setattr(program.Writing, "write_block", lambda self, *args: again.append(args[3:]) or real(self, *args))
    write(run[0], world, tmp_path / "out")
    assert len(again) == 2 and files(tmp_path / "out") == files(written)
    assert "a blind scorer prefers the true caption in" in capsys.readouterr().out
    write(run[0], world, tmp_path / "out")
    assert "already; nothing to do" in capsys.readouterr().out


def test_two_processes_write_the_same_bytes(written, run, world, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "tagsds.write", "--checkpoint", str(run[0]), "--data", str(world), "--output", str(tmp_path / "out"), *SMALL]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "on 2 processes" in done.stdout and files(tmp_path / "out") == files(written)


def test_sugarcrepes_layout_is_read_by_the_evaluator(written, run, world, tmp_path, bank):
    write(run[0], world, tmp_path / "out", "--layout", "sugarcrepe", "--no-blind")
    expected = lines(written)
    found = read_pairs([tmp_path / "out" / "edits"], bank.keys)
    assert {kind.kind: len(kind.pairs) for kind in found} == Counter(entry["kind"] for entry in expected)
    pairs = {(bank.keys[p.image], p.caption, p.negative) for kind in found for p in kind.pairs}
    assert pairs == {(entry["image"], entry["caption"], entry["text"]) for entry in expected}
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())["figures"]
    assert figures["blind_prefers_the_caption"] is None and figures["kept"] == len(expected)


def test_thresholds_and_kinds(run, world, tmp_path):
    write(run[0], world, tmp_path / "out", "--no-blind", "--kinds", "object", "attribute", "--most-words", 1, "--above-true", 0)
    found = lines(tmp_path / "out")
    assert found and all(entry["kind"] in ("object", "attribute") and len(entry["changes"]) == 1 for entry in found)
    assert all(entry["score"] <= entry["caption_score"] + 1e-6 for entry in found)
    dropped = json.loads((tmp_path / "out" / "figures.json").read_text())["figures"]["dropped"]
    assert all(dropped[name] for name in ("annotated", "kind", "words", "score"))


def test_a_balance_by_hand():
    # the hardest first; then the side that is behind, the other where a row has none of it
    assert balanced([[3.0, 2.0, -1.0], [1.0, 4.0], [5.0, -2.0, -3.0]], 2) == [[0, 2], [0, 1], [1, 2]]
    assert balanced([[], [0.0], [-1.0, -2.0, 7.0]], 2) == [[], [0], [0, 2]]


def test_rebalanced_negatives_cannot_be_guessed(run, world, tmp_path):
    write(run[0], world, tmp_path / "out", "--rebalance")
    found = lines(tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())["figures"]
    share = 100 * sum(entry["blind"] > 0 for entry in found) / len(found)
    assert abs(share - 50) < 4 and figures["blind_prefers_the_caption"] == pytest.approx(share, abs=0.5)
    assert figures["written"] == figures["kept"] + figures["spare"] + sum(figures["dropped"].values())


def fails(capsys, *arguments: object) -> str:
    return refusal(program.main, capsys, *arguments)


def test_what_a_user_is_told(written, run, world, tmp_path, capsys):
    base = ["--checkpoint", run[0], "--data", world]
    assert "of a run with another number; give the options it was begun with" in fails(
        capsys, *base, "--output", written, *SMALL, "--number", 5
    )
    assert "--number is 0" in fails(capsys, *base, "--number", 0)
    assert "--rebalance needs the blind scorer" in fails(capsys, *base, "--rebalance", "--no-blind")
    assert "--tau is nan" in fails(capsys, *base, "--tau", "nan")
    assert "are no range within 0..1" in fails(capsys, *base, "--min-score", 0.9, "--max-score", 0.1)
    assert "did you mean 'dev'?" in fails(capsys, *base, "--split", "dve")
    save_run(tmp_path / "plain", world, ["itm", "rank"])
    plain = ["--checkpoint", tmp_path / "plain", "--data", world, *SMALL, "--output", tmp_path / "out"]
    assert "no trained masked-word head" in fails(capsys, *plain)


def test_a_damaged_block(written, run, world, tmp_path, capsys, monkeypatch):
    real = program.Writing.write_block

    def pulled(self, *args):
        if args[4]:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(program.Writing, "write_block", pulled)
    with pytest.raises(KeyboardInterrupt):
        write(run[0], world, tmp_path / "out")
    monkeypatch.setattr(program.Writing, "write_block", real)
    (part,) = (tmp_path / "out" / "parts").glob("0*.json")
    part.write_text('{"entries": 3, "captions": [], "counts": {}}')
    arguments = ["--checkpoint", run[0], "--data", world, "--output", tmp_path / "out", *SMALL]
    assert "is no block of negatives (entries is 3" in fails(capsys, *arguments)
    part.unlink()
    write(run[0], world, tmp_path / "out")
    assert files(tmp_path / "out") == files(written)


def test_attested_runs_by_hand():
    captions = Ragged.from_rows([torch.tensor([1, 5, 6, 7, 2]), torch.tensor([1, 6, 8, 2]), torch.tensor([1, 2])])
    ids = torch.tensor([[1, 5, 6, 7, 2, 0]])
    rows = [[1, 5, 6, 7, 2, 0], [1, 5, 6, 8, 2, 0], [1, 5, 8, 7, 2, 0], [1, 6, 6, 7, 2, 0], [1, 5, 6, 2, 2, 0]]
    candidates = torch.tensor([rows])
    two, three = Attested([captions], 2, 10), Attested([captions], 3, 10)
    assert two.known.tolist() == [12, 15, 16, 56, 67, 68, 72, 82] and three.known.tolist() == [156, 168, 567, 672, 682]
    # 5 6 8: pairs 56, 68, 82 are known, of the runs of three 568 is not; 6 6: no pair
    assert two.holds(candidates, ids, 0).tolist() == [[True, True, False, False, False]]
    assert three.holds(candidates, ids, 0).tolist() == [[True, False, False, False, False]]
    parts = Attested([captions.select(torch.tensor([row])) for row in range(3)], 3, 10)
    assert torch.equal(parts.known, three.known)
    assert not Attested([], 3, 10).holds(candidates, ids, 0)[0, 1:].any()


def test_attested_sentences_alone_are_kept(run, world, tmp_path):
    write(run[0], world, tmp_path / "out", "--no-blind", "--attested", 3, "--maskings", 8)
    tokenizer, runs = load_tokenizer(world / "tokenizer"), set()
    for split in ("train", "dev", "test"):
        bank = load_bank(world, split)[0]
        for row in range(bank.num_captions):
            ids = bank.tokens[row].tolist()
            runs |= set(zip(ids, ids[1:], ids[2:], strict=False))
    found = lines(tmp_path / "out")
    assert found
    for entry in found:
        old, new = (tokenizer(entry[key])["input_ids"] for key in ("caption", "text"))
        assert len(old) == len(new)
        for at in range(len(new) - 2):
            assert new[at : at + 3] == old[at : at + 3] or tuple(new[at : at + 3]) in runs
    dropped = json.loads((tmp_path / "out" / "figures.json").read_text())["figures"]["dropped"]
    assert dropped["unattested"] > 0
    retriever = tagsds.load(run[0], world, "cpu", split="dev")
    key = retriever.keys[0]
    some = retriever.write_negatives(key, retriever.captions(key)[0], 5, rules=tagsds.Rules(attested=2))
    assert some.dropped["unattested"]
    with pytest.raises(tagsds.UserError, match="there is no corpus whose captions could be asked"):
        tagsds.load(run[0]).write_negatives(retriever.gallery.regions(key), "a red circle", rules=tagsds.Rules(attested=2))
