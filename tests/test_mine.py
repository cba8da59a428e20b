"""tagsds-mine from end to end: what it writes, resumed, on two processes, and what the user is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tagsds import mine as program
from tagsds.data.shards import load_bank
from tagsds.formats.candidates import Candidates
from tagsds.formats.manifest import read_manifest
from tagsds.models.matchers import MATCHERS, VSRN
from tagsds.ranks import World
from tagsds.scoring import tops
from tagsds.scoring.mining import search_bank
from tagsds.scoring.tops import KeptTops
from tests.launch import ROOT, free_port
from tests.programs import refusal

SMALL = ["--captions", "30", "--images", "12", "--block-queries", "50", "--block-keys", "70"]


def matcher_of(world: Path, kind: str):
    manifest = read_manifest(world)
    make_config, make_model = MATCHERS[kind].config, MATCHERS[kind].model
    torch.manual_seed(4)
    sizes = {"vocab_size": manifest.vocab_size, "region_dim": manifest.feature_dim, "word_size": 8, "embed_size": 12}
    return make_model(make_config(**sizes)).eval()


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "vsrn"
    matcher_of(world, "vsrn").save_pretrained(folder / "export")
    return folder


def mine(run: Path, world: Path, output: Path, *arguments: str) -> None:
    program.main(["--checkpoint", str(run), "--data", str(world), "--output", str(output), *SMALL, *arguments])


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "captions_of_image.npy").read_bytes(), (folder / "images_of_caption.npy").read_bytes()


@pytest.fixture(scope="module")
def mined(run, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined") / "candidates"
    mine(run, world, folder)
    return folder


@pytest.fixture(scope="module")
def scores(run, world):
    """The whole matrix, own pairs at minus infinity."""
    bank, _ = load_bank(world, "train")
    model = matcher_of(world, "vsrn")
    every = torch.arange(bank.num_images), torch.arange(bank.num_captions)
    with torch.no_grad():
        whole = model.similarity(bank.image_table(every[0]), bank.text_table(every[1]))
    return whole.masked_fill(every[0][:, None] == bank.image_of_caption[None], -torch.inf), bank


def test_candidates_are_the_highest_of_the_whole_matrix(mined, world, scores):
    whole, bank = scores
    found = Candidates.read(mined, read_manifest(world), "train")
    for rows, matrix in ((found.captions_of_image, whole), (found.images_of_caption, whole.T)):
        best = matrix.topk(rows.shape[1], dim=1).values
        torch.testing.assert_close(matrix.gather(1, rows.long()), best, rtol=0, atol=1e-6)
    assert found.captions_of_image.shape == (60, 30) and found.images_of_caption.shape == (bank.num_captions, 12)
    assert not (mined / "parts").exists()
    about = json.loads((mined / "candidates.json").read_text())
    assert about["passes"] == 1 and about["images"] == 60 and set(about["seconds"]) == {"vectors", "search"}


def test_a_second_call_reuses_what_is_there(mined, run, world, capsys):
    before = (mined / "candidates.json").stat().st_mtime_ns
    mine(run, world, mined)
    assert "already; nothing to do" in capsys.readouterr().out
    assert (mined / "candidates.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("passes", [1, 2])
def test_interrupted_and_resumed_gives_the_same_bytes(passes, mined, run, world, tmp_path, monkeypatch):
    """A block of two of the images is done; with one pass its part of the captions' tops is on disk."""
    real, calls = program.search, []
    options = ["--tops-gib", "0"] if passes == 2 else []

    def pulled(*args):
        if len(calls) == passes:
            raise KeyboardInterrupt
        calls.append(args[3:5])
        return real(*args)

    monkeypatch.setattr(tops, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(program, "search", pulled)
    with pytest.raises(KeyboardInterrupt):
        mine(run, world, tmp_path / "c", *options)
    assert not (tmp_path / "c" / "candidates.json").exists()
    done = sorted(path.name for path in (tmp_path / "c" / "parts").glob("*_of_*.npy"))
    assert len(done) == passes
    again = []
    monkeypatch.setattr(program, "search", lambda *args: again.append(args[3:5]) or real(*args))
    monkeypatch.setattr(VSRN, "embed", lambda *args, **kwargs: pytest.fail("vectors are there already"))
    mine(run, world, tmp_path / "c", *options)
    blocks = 2 if passes == 1 else 2 + -(-(len(np.load(mined / "images_of_caption.npy"))) // 50)
    assert len(again) == blocks - passes
    assert json.loads((tmp_path / "c" / "candidates.json").read_text())["passes"] == passes
    assert tables(tmp_path / "c") == tables(mined)


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("tops-0.json", b'{"file": "tops-0-a.npy"}', "tops-0.json names no file and blocks; remove"),
        ("tops-0.json", b'{"file": "tops-0-a.npy", "blocks": [0, 0]}', "do not hold each of 2 blocks once; remove"),
        ("tops-0-a.npy", b"", "tops-0-a.npy is no whole npy array"),
    ],
)
def test_damaged_tops(file, damage, sentence, run, world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tops, "SAVE_SECONDS", 0.0)
    real = program.search

    def pulled(*args):
        if args[3]:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(program, "search", pulled)
    with pytest.raises(KeyboardInterrupt):
        mine(run, world, tmp_path / "c")
    monkeypatch.setattr(program, "search", real)
    (tmp_path / "c" / "parts" / file).write_bytes(damage)
    arguments = ["--checkpoint", run, "--data", world, "--output", tmp_path / "c", *SMALL]
    assert sentence in fails(capsys, *arguments)


class AloneAs(World):
    """A rank that waits for nobody: the test calls one after the other."""

    def wait(self) -> None:
        pass


def test_tops_of_three_processes_go_on_with_two(tmp_path):
    """Each former process's file is taken over or left as it is; what is left of the blocks is searched; all are merged."""
    scores = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    owners = torch.arange(12), torch.full((30,), -1)

    def take(world: World, blocks: list[int]) -> KeptTops:
        kept = KeptTops(tmp_path, 30, 4, world)
        for block in blocks:
            part, own = scores[block : block + 2].contiguous(), (owners[0][block : block + 2], owners[1])
            kept.highest.offer(part, own, block, by_column=True)
            kept.took(block)
        kept.save()
        return kept

    for rank in range(3):
        take(AloneAs(rank, 3), [2 * rank])
    kept = [take(AloneAs(rank, 2), [6 + 2 * rank, 10][: 2 - rank]) for rank in range(2)]
    assert kept[0].done >= {0, 2, 4} and (tmp_path / "tops-2-a.npy").is_file() and not (tmp_path / "tops-0-a.npy").exists()
    kept[0].finish([0, 2, 4, 6, 8, 10])
    expected = scores.T.sort(dim=1, descending=True).indices[:, :4]
    assert torch.cat([kept[0].merged(0, 11), kept[0].merged(11, 30)]).tolist() == expected.tolist()


def test_two_processes_write_the_same_bytes(mined, run, world, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command += ["-m", "tagsds.mine", "--checkpoint", str(run), "--data", str(world), "--output", str(tmp_path / "c"), *SMALL]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tables(tmp_path / "c") == tables(mined)
    assert json.loads((tmp_path / "c" / "candidates.json").read_text())["ranks"] == 2


def test_more_than_the_corpus_holds(run, world, tmp_path, capsys):
    program.main(["--checkpoint", str(run), "--data", str(world), "--output", str(tmp_path / "c")])
    bank, _ = load_bank(world, "train")
    assert f"keeping {bank.num_captions - 1} captions an image and 59 images a caption" in capsys.readouterr().out
    rows = np.load(tmp_path / "c" / "captions_of_image.npy")
    own = bank.captions_of_image.lengths.numpy()
    assert ((rows >= 0).sum(1) == bank.num_captions - own).all()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", ["vsrn", "scan"])
def test_rows_of_a_bank_in_memory(kind, share, world, scores):
    """What re-mining calls: all rows, from one comparison of each pair, or a share of them; any matcher."""
    _, bank = scores
    model = matcher_of(world, kind)
    every = torch.arange(bank.num_images), torch.arange(bank.num_captions)
    with torch.no_grad():
        whole = model.similarity(bank.image_table(every[0]), bank.text_table(every[1]))
    whole = whole.masked_fill(every[0][:, None] == bank.image_of_caption[None], -torch.inf)
    images, captions = (every[0][1::2], every[1][::3]) if share else every
    model.train()
    rows = search_bank(model, bank, 9, 7, images, captions, block=(11, 40))
    assert model.training
    for found, matrix in ((rows[0], whole[images]), (rows[1], whole.T[captions])):
        assert found.dtype == torch.int32
        best = matrix.topk(found.shape[1], dim=1).values
        torch.testing.assert_close(matrix.gather(1, found.long()), best, rtol=0, atol=1e-6)


def fails(capsys, *arguments: object) -> str:
    return refusal(program.main, capsys, *arguments)


def test_other_settings_in_the_folder(mined, run, world, capsys):
    message = fails(capsys, "--checkpoint", run, "--data", world, "--output", mined, "--captions", 31, "--images", 12)
    assert "candidates.json has captions_per_image 30 where this run has 31; name another --output" in message


def test_an_encoder_cannot_mine(world, tmp_path, capsys):
    from tests.small_world import model_of

    model_of(read_manifest(world)).save_pretrained(tmp_path / "run" / "export")
    assert "mine with a matcher" in fails(capsys, "--checkpoint", tmp_path / "run", "--data", world)


def test_numbers_below_one_and_an_unknown_split(run, world, capsys):
    assert "--tops-gib is nan" in fails(capsys, "--checkpoint", run, "--data", world, "--tops-gib", "nan")
    assert "--captions is 0" in fails(capsys, "--checkpoint", run, "--data", world, "--captions", 0)
    assert "no split 'trian': did you mean 'train'?" in fails(capsys, "--checkpoint", run, "--data", world, "--split", "trian")


def test_a_broken_checkpoint(world, tmp_path, capsys):
    model = matcher_of(world, "vsrn")
    with torch.no_grad():
        next(iter(model.parameters())).fill_(torch.nan)
    model.save_pretrained(tmp_path / "run" / "export")
    arguments = ["--checkpoint", tmp_path / "run", "--data", world, "--output", tmp_path / "c"]
    assert "model.safetensors holds NaN or infinity" in fails(capsys, *arguments)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(3e38)  # finite, and what is computed from it is not
    model.save_pretrained(tmp_path / "run" / "export")
    assert "gives NaN or infinity on train-000000.tar" in fails(capsys, *arguments[:-1], tmp_path / "d")
