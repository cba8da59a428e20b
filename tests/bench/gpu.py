"""What a GPU gives, in one call of under ten minutes; without one every part that can runs on the CPU at tiny sizes.

    python -m tests.bench.gpu [--device cuda] [--output gpu.json]

Needs torch and transformers alone; parts that need more (DeepSpeed, Triton) say so and are left out. One part's failure does not
end the others: failures are listed at the end, and the status is 1. Rows are printed and, with --output, written as JSON after
every part, so that a run that is cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.bench import run
from tests.bench.phases import measure as measure_phases
from tests.bench.rates import DTYPES, Product, Rates, timed
from tests.bench.rows import DROPOUT
from tests.bench.variants import Variants, bank_of

ROOT = Path(__file__).resolve().parents[2]
Found = Iterator[tuple[str, dict[str, Any]]]  # (a sentence or a line of figures, the figures)


class CannotRun(Exception):  # noqa: N818
    """A part that this machine cannot run; its message says why."""


@dataclass
class Machine:
    """Where the parts run. `preset`: UNITER-base on a GPU, tiny on a CPU. `bank` is made once."""

    device: torch.device
    preset: str
    banks: dict[str, Any] = field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def settings(self, *given: str) -> argparse.Namespace:
        return run.parse(["--preset", self.preset, "--device", str(self.device), *given])

    def variants(self, dtype: str, dropout: float = 0.0) -> Variants:
        args = self.settings("--dtype", dtype, "--dropout", str(dropout))
        if "bank" not in self.banks:
            self.banks["bank"] = bank_of(args).to(self.device)
        return Variants(args, self.banks["bank"])


def rates(machine: Machine) -> Found:
    """Matrix products of UNITER-base, forward, and forward with both gradients."""
    tokens, width = (131072, 768) if machine.gpu else (256, 64)
    measured = Rates(machine.device, least_s=0.2 if machine.gpu else 0.0)
    for precision in ("bf16", "fp16", "fp32") if machine.gpu else ("bf16", "fp32"):
        for gradient in (False, True):
            shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
            seconds = {s: s[0] * s[1] / measured.of(Product(precision, gradient, tokens, *s)) for s in shapes}
            rate = sum(a * b for a, b in shapes) / sum(seconds.values())
            each = {f"{a}->{b}": a * b / seconds[a, b] / 1e12 for a, b in shapes}
            text = f"{precision}, {tokens} tokens, width {width}{', with gradients' if gradient else ''}: {rate / 1e12:.3g} TFLOP/s"
            yield text, {"precision": precision, "gradient": gradient, "tflops": rate / 1e12, "each": each}


def rows_of(machine: Machine, *given: str) -> Found:
    """Rows of tests/bench/run.py."""
    found, operations = run.measure(machine.settings("--repeats", "3" if machine.gpu else "1", *given))
    for row in found:
        speed = f"{1 / row['per_unit']:,.0f} pairs/s" if row["kind"] == "scorer" else f"{row['seconds']:.3f} s"
        text = f"{row['variant']}: {speed}, {row['ratio']:.2f} of the first, {row['share']:.1%} of {row['rate'] / 1e3:.3g} TFLOP/s"
        yield text, row
    if given[-1] == "^ours":
        print("\n".join(operations))


def scorer(machine: Machine) -> Found:
    """The scorer at UNITER-base in bf16 against the measured rate of products."""
    yield from rows_of(machine, "--dtype", "bf16", "--rows", "^scorer")


def step(machine: Machine) -> Found:
    """The step against the plain one, in bf16, with and without dropout, and options."""
    yield from rows_of(machine, "--dtype", "bf16", "--rows", "^(ours|plain|option|kernel)")


def phases(machine: Machine) -> Found:
    """Shares of a step's time, and its memory."""
    found = measure_phases(machine.settings("--dtype", "bf16", "--repeats", "3" if machine.gpu else "1"))
    shares = ", ".join(f"{row['phase']} {row['share']:.0%}" for row in found["phases"])
    speed = f"{found['true_pairs_per_s']:.3g} true pairs/s, {found['tokens_per_s']:,.0f} tokens/s"
    yield f"{speed}, {found['peak_mib']:,.0f} MiB; {shares}", found


def kernels(machine: Machine) -> Found:
    """Each kernel alone (tests/bench/kernels.py)."""
    if importlib.util.find_spec("tests.bench.kernels") is None:
        raise CannotRun("tests/bench/kernels.py is not there: no kernel is timed alone.")
    if not machine.gpu:
        raise CannotRun("no GPU: its kernels are not timed.")
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "kernels.json"
        command = [sys.executable, "-m", "tests.bench.kernels", "--output", str(output)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        print(done.stdout)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        yield done.stdout.strip()[-300:], json.loads(output.read_text()) if output.is_file() else {"output": done.stdout}


def precisions(machine: Machine) -> Found:
    """The loss of the same step in each precision against fp32, and whether every gradient is finite."""
    exact = None
    for name in ("fp32", "bf16", "fp16"):
        if name == "fp16" and not machine.gpu:
            yield "fp16: not tried, products in fp16 are those of a GPU", {"precision": name}
            continue
        variants = machine.variants("fp32")
        scale = 2.0**10 if name == "fp16" else 1.0
        dtype = DTYPES[name]
        with torch.autocast(machine.device.type, dtype=torch.bfloat16 if name == "fp32" else dtype, enabled=name != "fp32"):
            total = variants.ours().float()
        (scale * total).backward()
        loss = float(total.detach())
        finite = all(bool(p.grad.isfinite().all()) for p in variants.model.parameters() if p.grad is not None)
        exact = loss if exact is None else exact
        error = abs(loss - exact)
        if not finite or error > 0.05 * abs(exact):
            raise RuntimeError(f"{name}: loss {loss:.5f} against {exact:.5f} in fp32, gradients finite: {finite}")
        text = f"{name} by autocast: loss {loss:.6f}, {error:.1e} from fp32, gradients finite"
        yield text, {"precision": name, "loss": loss, "error": error}


def dropout(machine: Machine) -> Found:
    """Dropout in the forward with a gradient: seconds of the step against those without."""
    taken = {}
    for p in (0.0, DROPOUT):
        variants = machine.variants("bf16", p)
        variants.ours().backward()

        def once(variants: Variants = variants) -> None:
            variants.model.zero_grad(set_to_none=True)
            variants.ours().backward()

        taken[p] = min(waited(once, machine.device) for _ in range(2))
    text = f"bf16, dropout {DROPOUT}: {taken[DROPOUT]:.3f} s a step, {taken[DROPOUT] / taken[0.0]:.2f} of that without"
    yield text, {"seconds": taken[DROPOUT], "without": taken[0.0]}


def waited(once: Callable[[], None], device: torch.device) -> float:
    """Seconds of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def optimiser(machine: Machine) -> Found:
    """AdamW over UNITER's parameters: one tensor at a time, torch's fused one, DeepSpeed's FusedAdam where it is installed."""
    model = machine.variants("fp32").model
    weights = [p for p in model.parameters() if p.requires_grad]
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-3)
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "plain": lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=False),
        "fused": lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True),
    }
    if machine.gpu and importlib.util.find_spec("deepspeed") is not None:
        from deepspeed.ops.adam import FusedAdam

        makers["DeepSpeed's FusedAdam"] = lambda p: FusedAdam(p, lr=1e-6, adam_w_mode=True)
    else:
        why = "deepspeed is not installed" if machine.gpu else "no GPU"
        yield f"DeepSpeed's FusedAdam: not tried, {why}", {"optimiser": "FusedAdam"}
    count = sum(weight.numel() for weight in weights)
    for name, make in makers.items():
        made = make(weights)
        made.step()
        seconds = timed(made.step, machine.device)
        yield f"{name}: {1000 * seconds:.2f} ms for {count:,} weights", {"optimiser": name, "seconds": seconds}


def one_rank(machine: Machine) -> Found:
    """A group of one rank: nccl on a GPU, gloo on a CPU."""
    backend = "nccl" if machine.gpu else "gloo"
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group(backend, init_method=f"file://{place}/meet", rank=0, world_size=1)
        try:
            x = torch.arange(1 << 20, device=machine.device, dtype=torch.float32)
            before = x.clone()
            dist.all_reduce(x)
            gathered = [torch.empty_like(x)]
            dist.all_gather(gathered, x)
            if not (torch.equal(x, before) and torch.equal(gathered[0], before)):
                raise RuntimeError(f"{backend}: one rank's sum is not its own tensor")
        finally:
            dist.destroy_process_group()
    yield f"{backend}, one rank: all-reduce and all-gather of 4 MiB return the tensor", {"backend": backend}


def training(machine: Machine) -> Found:
    """`tagsds/train.py` with one rank under DeepSpeed, in bf16 and fp16."""
    missing = [name for name in ("deepspeed", "webdataset", "omegaconf") if importlib.util.find_spec(name) is None]
    if missing or not machine.gpu:
        raise CannotRun(f"no run of tagsds/train.py: {'no GPU' if not machine.gpu else ', '.join(missing) + ' not installed'}.")
    from tests.launch import TAGS_DC, TINY, free_port

    with tempfile.TemporaryDirectory() as place:
        world = Path(place) / "world"
        pack = ["world", "--out", str(world), "--train", "60", "--dev", "12", "--test", "20", "--workers", "1"]
        subprocess.run([sys.executable, "-m", "preprocess.pack", *pack], cwd=ROOT, check=True, capture_output=True, timeout=100)
        for name in ("zero2_bf16", "fp16"):
            output = Path(place) / name
            command = [sys.executable, "tagsds/train.py", "--deepspeed_config", f"ds_configs/{name}.json"]
            command += ["--recipe", "published-base", "--data", str(world), "--output", str(output), *TINY, *TAGS_DC]
            env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            begin = time.perf_counter()
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200
            )
            if done.returncode:
                raise RuntimeError(f"{name}: {(done.stdout + done.stderr)[-2000:]}")
            seconds = time.perf_counter() - begin
            text = f"{name}: six steps of TAGS-DC with one rank in {seconds:.0f} s, start-up included"
            yield text, {"config": name, "seconds": seconds}


PARTS: dict[str, Callable[[Machine], Found]] = {
    "rates": rates, "scorer": scorer, "step": step, "phases": phases, "dropout": dropout, "kernels": kernels,
    "precisions": precisions, "optimiser": optimiser, "one rank": one_rank, "training": training,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", choices=run.PRESETS, help="sizes of the step (default: base on a GPU, tiny on a CPU)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    machine = Machine(device, args.preset or ("base" if device.type == "cuda" else "tiny"))
    if not machine.gpu:
        print("There is no GPU here: every part that can runs on the CPU at tiny sizes, which measures nothing.")
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name in args.parts:
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        try:
            for text, figures in PARTS[name](machine):
                print(f"   {text}", flush=True)
                rows.append({"part": name, "text": text, "figures": figures})
        except CannotRun as why:
            print(f"   left out: {why}", flush=True)
            rows.append({"part": name, "text": f"left out: {why}", "figures": {}})
        except Exception as error:
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {str(error)[:500]}"
        print(f"   ({time.perf_counter() - begin:.0f} s)", flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            content = {"about": run.about(args), "rows": rows, "failed": failed}
            args.output.write_text(json.dumps({"parts": {"gpu": content}}, indent=1, default=str) + "\n")
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
