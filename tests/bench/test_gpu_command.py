"""`make bench-gpu` and `make test-gpu`: on a CPU to the end with what cannot run said, on a GPU in earnest."""

import json

import pytest
import torch

from tagsds.scoring.scorer import Scorer
from tests.bench import gpu, gpu_tests, run
from tests.bench.variants import Variants


def test_every_part_on_a_cpu(tmp_path, capsys):
    output = tmp_path / "gpu.json"
    parts = ["rates", "phases", "precisions", "optimiser", "training"]
    assert gpu.main(["--device", "cpu", "--parts", *parts, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "There is no GPU here" in shown and "left out: no run of tagsds/train.py: no GPU." in shown
    written = json.loads(output.read_text())["parts"]["gpu"]
    assert written["failed"] == {} and {row["part"] for row in written["rows"]} >= {"rates", "phases", "precisions"}
    losses = {row["figures"]["precision"]: row["figures"].get("loss") for row in written["rows"] if row["part"] == "precisions"}
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=1e-2) and losses["fp16"] is None


def test_a_failure_is_listed_and_does_not_end_the_others(tmp_path, capsys, monkeypatch):
    def fails(machine):
        yield "before", {"seconds": 1.0}
        raise ValueError("the kernel does not compile")

    monkeypatch.setitem(gpu.PARTS, "rates", fails)
    assert gpu.main(["--device", "cpu", "--parts", "rates", "one rank", "--output", str(tmp_path / "gpu.json")]) == 1
    written = json.loads((tmp_path / "gpu.json").read_text())["parts"]["gpu"]
    assert written["failed"] == {"rates": "ValueError: the kernel does not compile"}
    assert [row["part"] for row in written["rows"]] == ["rates", "one rank"]
    assert "failed: rates: ValueError" in capsys.readouterr().err


def test_files_with_gpu_tests_are_found():
    assert "tests/bench/test_gpu_command.py" in gpu_tests.files() and "tests/distributed/test_combinations.py" in gpu_tests.files()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype, most", [("fp32", 2e-3), ("bf16", 5e-2)])
def test_scores_of_a_gpu_are_those_of_a_cpu(dtype, most):
    """The same weights and pairs; TF32 is off by default."""
    exact = Variants(run.parse(["--preset", "tiny", "--hidden", "128", "--layers", "3"]))
    pairs = exact.mined_pairs()
    expected = exact.scorer(pairs)
    there = Variants(exact.args, exact.bank.to("cuda"), dtype)
    there.model.load_state_dict(exact.model.state_dict())
    moved = type(pairs)(
        pairs.texts.to("cuda"),
        type(pairs.images)(pairs.images.regions.to("cuda"), pairs.images.geometry.cuda()),
        pairs.text_of_pair.cuda(),
        pairs.image_of_pair.cuda(),
    )
    found = Scorer(there.model.to("cuda"))(moved).cpu()
    assert float((found - expected).abs().max()) < most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_bench_of_a_gpu_ends_well(tmp_path):
    """All parts that need no further package, at small sizes."""
    parts = ["rates", "scorer", "step", "phases", "dropout", "precisions", "optimiser", "one rank"]
    assert gpu.main(["--preset", "tiny", "--parts", *parts, "--output", str(tmp_path / "gpu.json")]) == 0
