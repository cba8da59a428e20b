"""`tagsds-train --estimate`: its terms against numbers worked by hand, tensors that are alive, and files on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tagsds import train
from tagsds.config import load_config
from tagsds.data.cache import Cache
from tagsds.data.vocabulary import Vocabulary, load_tokenizer
from tagsds.errors import UserError
from tagsds.estimate.corpus import Corpus, read_corpus
from tagsds.estimate.disk import checkpoint_bytes
from tagsds.estimate.memory import Encoder, Machine, Parameters, bank_parts, state_parts
from tagsds.estimate.parts import Part, total
from tagsds.estimate.report import compute, misfit
from tagsds.estimate.teachers import read_teachers, teacher_flop, teacher_parts
from tagsds.estimate.work import Forward, Sizes, retrieval_work
from tagsds.formats.manifest import read_manifest
from tagsds.kernels import choice
from tests import launch
from tests.live_memory import LiveBytes
from tests.models.plain_uniter import model_of, pairs_of
from tests.trained import save_run

BASE = Sizes(layers=12, hidden=768, intermediate=3072, heads=12, vocabulary=28996)
COCO = Corpus(113287, 566435, 113287 * 36, 13.0, 60, 36, 2.0, 2048, 0, (10**9,) * 17)
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}


def states(stage: int, ranks: int, **ds) -> dict[str, float]:
    zero = {"stage": stage, "contiguous_gradients": False, "stage3_prefetch_bucket_size": 0, **ds.pop("zero", {})}
    parts = state_parts(Parameters(1000, 100, 50), ds | {"zero_optimization": zero}, Machine("cuda", ranks, ranks), True)
    return {part.name: part.bytes for part in parts}


def test_states_of_the_zero_paper() -> None:
    """Figure 1 of arXiv 1910.02054: 16 bytes a parameter without ZeRO; of 64 ranks, stage 3 holds 1 / 64 of it. fp32 sums add 2."""
    fp16 = {"fp16": {"enabled": True}}
    plain = states(0, 64, **fp16)
    assert plain == {"weights": 2200, "fp32 master weights": 4000, "Adam's two moments": 8000, "gradients": 2000}
    assert sum(plain.values()) == 16 * 1000 + 2 * 100  # the frozen ones have weights alone
    third = states(3, 4, **BF16)
    assert third["weights"] == 550 and third["Adam's two moments"] == 2000 and third["fp32 master weights"] == 1000
    assert third["this rank's share of the gradients"] == 1000 and third["gathered weights"] == 100
    second = states(2, 4, **BF16)
    assert second["weights"] == 2200 and second["this rank's share of the gradients"] == 1000 and "gradients" not in second
    assert states(0, 2) == {"weights": 4400, "Adam's two moments": 8000, "gradients": 4000}  # fp32


def test_offloading_moves_states_to_the_host() -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}, "contiguous_gradients": False}
    parts = state_parts(Parameters(1000, 0, 50), {"zero_optimization": zero, **BF16}, Machine("cuda", 2, 2), False)
    device = {part.name: part.bytes for part in parts if part.where == "device"}
    assert device == {"gathered weights": 2 * 1000, "gathered weights that the graph holds": 2 * 1000}
    assert sum(part.bytes for part in parts if part.where == "host") == 1000 + 2000 + 4000 + 2000 + 2000


def test_a_layer_is_that_of_korthikanti() -> None:
    """s b h (34 + 5 a s / h) for fp16 and F = 4 H, less softmax and the two masks; s = 50 tokens, b = 7."""
    s, b, h = 50, 7, 768
    assert Encoder(BASE, 2, 0.1, "cuda", False).layer(s * b) == s * b * h * (34 - 2)


@pytest.mark.skipif(not choice.compiled(), reason=f"no C++ kernels here: {choice.why_not_compiled()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_layer_holds_what_the_formula_says(dropout: float, attention_dropout: float, dtype: torch.dtype) -> None:
    """Pairs of one length, so that nothing is padded: bytes alive after the forward, with 6 layers and with 3."""
    held, tables = [], dict(texts=[6, 6], images=[4, 4], held=[(0, 0), (0, 1), (1, 0), (1, 1)])
    for layers in (3, 6):
        model = model_of(num_hidden_layers=layers, hidden_size=32, num_attention_heads=4, intermediate_size=96,
                         hidden_dropout_prob=dropout, attention_probs_dropout_prob=attention_dropout).train().to(dtype)  # fmt: skip
        with LiveBytes() as memory:
            memory.forget(*model.parameters())
            kept = model(pairs_of(**tables))
            held.append(memory.live)
        assert kept.requires_grad
    w = dtype.itemsize
    encoder = Encoder(Sizes(6, 32, 96, 4, 50), w, dropout, "cpu", False)
    statistics = 2 * 2 * 40 * 4 + 4 * 40 * 4  # mean and deviation of two norms; the log-sums of attention's rows
    assert (held[1] - held[0]) / 3 == encoder.layer(40) + statistics


def test_operations_by_hand() -> None:
    """One pair of 49 tokens through 12 layers: 24 H^2 + 4 t H a token and layer, but q, k, v of the first layer a table row."""
    t, H = COCO.tokens, 768
    found = Forward(pairs=1, texts=1, images=1, keep=t, words=3).flop(COCO, BASE)
    expected = 12 * t * (24 * H * H + 4 * t * H) + 36 * 2 * 2048 * H + 3 * (2 * H * H + 2 * H * 28996)
    assert found == pytest.approx(expected, rel=1e-12)


def test_counts_of_tags_on_coco() -> None:
    """4 pairs: 3,192 mined, 80 maskings, 1,600 sentences; 4 + 2 x 124 hard + 124 written + 80 masked with a gradient."""
    config = load_config("tags-base-coco")
    work = retrieval_work(config, COCO)
    assert (work.mined.pairs, work.refilled.pairs, work.written.pairs, work.trained.pairs) == (3192, 80, 1600, 456)
    assert work.trained.words == 80 * 2 and work.trained.images == 128
    plain, recomputed = (work.flop(COCO, BASE, on) for on in (False, True))
    assert recomputed - plain == pytest.approx(work.trained.flop(COCO, BASE))
    shared = retrieval_work(load_config("baseline-base-coco", ["negatives.shared=true", "batch.pairs=8"]), COCO)
    assert shared.mined.pairs == 64 and shared.trained.pairs == 8 + 2 * 8 * 7 and shared.written.pairs == 0


def test_windows_bound_the_bank() -> None:
    config = load_config("tags-base-coco", ["data.max_gib=3.0"])
    (whole,) = bank_parts(load_config("tags-base-coco"), COCO, Machine("cpu", 1, 1))
    (window,) = bank_parts(config, COCO, Machine("cpu", 1, 1))
    assert "3 of 17 shards" in window.name and window.bytes == pytest.approx(whole.bytes * 3 / 17)


def test_the_largest_phase_counts() -> None:
    parts = [Part("a", 5), Part("b", 3, at="backward"), Part("c", 2, at="mining"), Part("d", 2, at="mining"), Part("e", 9, "host")]
    assert total(parts, "device") == (9, "mining") and total(parts, "host") == (9, "always")


def corpus_of(world: Path) -> tuple[Corpus, Cache]:
    manifest, config = read_manifest(world), load_config("published-base")
    vocab = Vocabulary.of(load_tokenizer(world / "tokenizer"))
    return read_corpus(manifest, config, vocab, True), Cache(manifest, "", False, True)


def test_tables_are_as_large_as_the_cache(world: Path) -> None:
    corpus, cache = corpus_of(world)
    tables = cache.tables(cache.manifest.shards("train"), None, "cpu")
    assert tables is not None
    found = sum(table.numel() * table.element_size() for table in tables.of.values())
    assert corpus.table_bytes == pytest.approx(found, rel=0.25)  # short captions, features of few classes: strings count here


ARGUMENTS = ["--estimate", "--recipe", "published-base", "--deepspeed_config", "ds_configs/zero2_bf16.json", "--tflops", "50"]


@pytest.mark.parametrize("recipe", ["tagsdc-large-coco", "published-pretrain-base", "vsrn-coco", "scan-aoq-coco", "bfan-flickr"])
def test_recipes_of_each_kind(world: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    train.main([*ARGUMENTS, "--data", str(world), "--ranks", "8", "--recipe", recipe])
    said = capsys.readouterr().out
    assert all(text in said for text in ("frozen", "memory of a rank", "Adam's two moments", "checkpoints", "hours of operations"))
    assert ("offline candidates" in said) == ("aoq" in recipe)


def test_teachers_are_counted(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of 4 bytes a parameter; each scores 4 true and 2 x 4 x 31 hard pairs once, beside what the student does."""
    folders = [save_run(tmp_path / name, world) for name in ("one", "two")]
    parameters = sum(p.numel() for p in folders[0].parameters())
    teachers = read_teachers([str(tmp_path / name) for name in ("one", "two")])
    assert [teacher.parameters for teacher in teachers] == [parameters, parameters]
    work = retrieval_work(load_config("baseline-base-coco"), COCO)
    assert work.taught.pairs == 4 + 2 * 4 * 31
    more = retrieval_work(load_config("tags-base-coco", ["distil.teachers=[x]", "distil.synthetic=1", "distil.offline=6"]), COCO)
    less = retrieval_work(load_config("tags-base-coco"), COCO)
    written = less.trained.pairs - work.trained.pairs - 4 * 20  # maskings of mlm
    assert more.taught.pairs - work.taught.pairs == 2 * 4 * 6 + written and written == 4 * 31
    assert more.trained.pairs - less.trained.pairs == 2 * 4 * 6 and more.trained.images - less.trained.images == 4 * 6
    weights, _ = teacher_parts(teachers, work.taught, COCO, "cpu")
    assert weights.bytes == 2 * 4 * parameters
    assert teacher_flop(teachers, work.taught, COCO) == pytest.approx(2 * work.taught.flop(COCO, teachers[0].sizes))
    train.main([*ARGUMENTS, "--data", str(world), f"distil.teachers=[{tmp_path / 'one'},{tmp_path / 'two'}]"])
    assert "weights of the teachers" in capsys.readouterr().out


def test_too_small_a_gpu_gets_one_sentence(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.main([*ARGUMENTS, "--data", str(world), "--gpu-gib", "1", "loss.syn=0.1"])
    said = capsys.readouterr()
    assert left.value.code == 2 and said.err.count("\n") == 1
    assert "the largest part is activations" in said.err and "batch.activation_checkpointing=true" in said.err
    train.main([*ARGUMENTS, "--data", str(world), "--gpu-gib", "80"])
    assert "on the cuda" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "ds", "remedy"),
    [
        (["batch.pairs=1", "negatives.keep=1", "negatives.count=1"], "zero0.json", "take a higher ZeRO stage"),
        (["batch.activation_checkpointing=true", "batch.pairs=1"], "zero3_bf16.json", "reduce_bucket_size"),
    ],
)
def test_the_remedy_is_that_of_the_largest_part(world: Path, settings: list[str], ds: str, remedy: str) -> None:
    config = load_config("published-base", settings)
    found = compute(config, read_manifest(world), launch.ROOT / "ds_configs" / ds, Machine("cuda", 1, 1))
    sentence = misfit(found, 0.5)
    assert sentence is not None and remedy in sentence
    assert misfit(found, 500) is None


def test_no_process_group_and_no_deepspeed(world: Path) -> None:
    program = (
        "import sys; from tagsds import train; train.main(sys.argv[1:]); import torch.distributed as d;"
        "assert 'deepspeed' not in sys.modules and not d.is_initialized()"
    )
    command = [sys.executable, "-c", program, *ARGUMENTS, "--data", str(world)]
    done = subprocess.run(command, cwd=launch.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_output_is_needed_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse([*ARGUMENTS[1:], "--data", "x"])
    assert "--output" in capsys.readouterr().err
    with pytest.raises(UserError, match="--ranks is 0"):
        from tagsds.estimate import estimate

        estimate(train.parse([*ARGUMENTS, "--data", "x", "--ranks", "0"]))


@pytest.mark.slow
def test_a_checkpoint_is_as_large_as_estimated(world: Path, tmp_path: Path) -> None:
    """Both ranks' files; DeepSpeed pads partitions and pickles names, and each tensor is a record of a zip: some 0.3 MB."""
    settings = [*launch.TINY, "model.hidden_size=128", "optimiser.steps=1", "log.examples=0"]
    launch.train(world, tmp_path / "run", "ds_configs/zero2_bf16.json", settings, ranks=2)
    found = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints" / "step1").iterdir())
    config = load_config("published-base", settings)
    ds_file = launch.ROOT / "ds_configs" / "zero2_bf16.json"
    estimate = compute(config, read_manifest(world), ds_file, Machine("cpu", 2, 2))
    ds = json.loads(ds_file.read_text())
    assert checkpoint_bytes(estimate.parameters, ds) == pytest.approx(found, rel=0.05, abs=400_000)
    assert torch.is_grad_enabled()
