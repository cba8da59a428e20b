"""Re-mining under ZeRO-3, where every forward is a collective: ranks with unequal shares call the scorer equally often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tagsds.data.shards import load_bank
from tagsds.formats.candidates import write_candidates
from tagsds.formats.manifest import read_manifest
from tagsds.negatives.offline import Candidates
from tagsds.negatives.remine import rescore
from tagsds.scoring.scorer import Scorer
from tests.candidates import candidates_of
from tests.conftest import pack
from tests.launch import run_two
from tests.small_world import model_of

PROGRAM = Path(__file__).with_name("remine_shares.py")


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Path:
    """Seven images with 35 captions: of two ranks one has 4 images and 18 captions, the other 3 and 17."""
    folder = tmp_path_factory.mktemp("seven") / "world"
    pack("world", "--out", folder, "--train", 7, "--dev", 2, "--test", 2, "--shard-size", 30, "--workers", 1)
    return folder


@pytest.mark.parametrize("rows_a_call", [3, 17], ids=["images-4-and-3", "captions-18-and-17"])
def test_odd_counts_on_two_ranks_equal_one_process(seven: Path, tmp_path: Path, rows_a_call: int) -> None:
    """Blocks of 3 rows: two calls for 4 images, one for 3. Blocks of 17: two calls for 18 captions, one for 17. A hang ends at the
    time limit of `run_two`."""
    bank, manifest = load_bank(seven, "train")
    before = candidates_of(bank, 30, 6)
    tables = before.captions_of_image.numpy(), before.images_of_caption.numpy()
    write_candidates(tmp_path / "mined", manifest, "train", *tables, {"checkpoint": "none", "checkpoint_sha256": ""})
    zero3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}  # gather each parameter
    (tmp_path / "zero3.json").write_text(json.dumps(zero3))
    arguments = seven, tmp_path / "mined", tmp_path / "run", tmp_path / "zero3.json", 5 * rows_a_call
    printed = run_two(PROGRAM, *arguments)
    assert all("re-mined" in text for text in printed)

    rows = torch.arange(bank.num_images), torch.arange(bank.num_captions)
    expected = rescore(Scorer(model_of(manifest)), bank, before, 5, *rows)
    found = Candidates.read(tmp_path / "run" / "candidates" / "step3", read_manifest(seven), "train")
    assert torch.equal(found.captions_of_image, expected[0]) and torch.equal(found.images_of_caption, expected[1])
    assert not torch.equal(found.captions_of_image, before.captions_of_image), "re-mining changed nothing"
