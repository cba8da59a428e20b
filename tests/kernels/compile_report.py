"""Compiles every Triton kernel for A100 (sm_80) and H100/H200 (sm_90) without a GPU; reads its shared memory, registers and spills.

    python tests/kernels/compile_report.py [--capability 80 90] [--main] [--json]

Prints the Markdown table of docs/kernels.md, or JSON. A process of its own: the interpreter and the compiler exclude each other.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from tagsds.kernels.triton import add_norm, attention, flash, sample

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
FLOAT32 = {"lse", "delta", "mean", "rstd", "partial", "keys"}  # whatever the tensors' dtype
INTEGERS = {"q_starts": "*i32", "k_starts": "*i32", "rows": "*i64", "allowed": "*u8", "chosen": "*i32"}
SCALARS = {"inverse_tau": "fp32"}
WORDS = {"seed", "count", "share", "blocks", "pieces", "total"} | {"q_stride", "k_stride", "v_stride", "dq_stride", "dk_stride"}


@dataclass
class Case:
    """One kernel as a launch compiles it: `settings` as the wrapper gives them, `dtype` of its tensors; `main`: a size of the
    published models, which may not spill."""

    name: str
    kernel: Any
    settings: dict[str, Any]
    dtype: torch.dtype
    main: bool


def cases() -> list[Case]:
    return [*attention_cases(), *add_norm_cases(), *sample_cases()]


def attention_cases() -> list[Case]:
    found = []
    sizes = [
        (12, 64, (150, 150), 0.1, torch.bfloat16, True),
        (12, 64, (150, 150), 0.1, torch.float16, True),
        (12, 64, (150, 150), 0.0, torch.bfloat16, True),
        (12, 64, (1, 150), 0.0, torch.bfloat16, True),  # the last layer, for [CLS] alone
        (12, 64, (150, 150), 0.1, torch.float32, True),
        (4, 24, (20, 40), 0.1, torch.bfloat16, True),  # a small head, padded
        (8, 128, (150, 150), 0.1, torch.bfloat16, False),
        (4, 256, (150, 150), 0.1, torch.bfloat16, False),
        (4, 256, (150, 150), 0.1, torch.float32, False),
    ]
    for heads, width, longest, dropout, dtype, main in sizes:
        query = torch.empty(0, heads, width, dtype=dtype)
        name = f"{heads} heads of {width}, {longest[0]} queries, {longest[1]} keys, dropout {dropout}"
        for kernel in (flash.attend, flash.attend_dq, flash.attend_dkv):
            settings = attention.settings(query, longest, dropout, owns_keys=kernel is flash.attend_dkv)
            found.append(Case(name, kernel, settings, dtype, main))
    return found


def add_norm_cases() -> list[Case]:
    found = []
    for width, dropout, dtype, main in (
        (768, 0.1, torch.bfloat16, True),
        (768, 0.0, torch.bfloat16, True),
        (768, 0.1, torch.float32, True),
        (1024, 0.1, torch.bfloat16, True),
        (100, 0.1, torch.float16, False),
        (4096, 0.1, torch.bfloat16, True),
    ):
        settings = add_norm.settings(width, dropout)
        name = f"width {width}, dropout {dropout}"
        forward = {"eps": 1e-12, "gathers": False, "keeps": True}
        found += [
            Case(name, add_norm.add_norm_forward, settings | forward, dtype, main),
            Case(name, add_norm.add_norm_backward, settings | {"apart": dropout > 0}, dtype, main),
        ]
        if dropout == 0:
            gather = {"eps": 1e-12, "gathers": True, "keeps": False}
            found.append(Case(name + ", rows gathered", add_norm.add_norm_forward, settings | gather, dtype, main))
    return found


def sample_cases() -> list[Case]:
    found = []
    half, single = torch.bfloat16, torch.float32
    for width, dtype, rows in ((768, half, 2000), (1024, half, 2000), (768, single, 2000), (768, half, 9)):
        settings = sample.settings(torch.empty(rows, width, dtype=dtype), 20)
        found.append(Case(f"{rows} positions, width {width}, 20 draws", sample.sample_chunk, settings, dtype, True))
    return found


def signature(case: Case) -> dict[str, str]:
    """The type of each argument by its name; weights of LayerNorm are float32, as in mixed precision."""
    types = {}
    for name in case.kernel.arg_names:
        if name in case.settings:
            types[name] = "constexpr"
        elif name in WORDS:
            types[name] = "i32"
        elif name in SCALARS | INTEGERS:
            types[name] = (SCALARS | INTEGERS)[name]
        elif name in FLOAT32 or (name in ("weight", "bias") and case.kernel is not sample.sample_chunk):
            types[name] = "*fp32"
        else:
            types[name] = POINTERS[case.dtype]
    return types


def compile_case(case: Case, capability: int) -> dict[str, Any]:
    """Figures of one compiled kernel: shared memory in bytes, registers a thread, bytes of spills, warps."""
    types = signature(case)
    options = {name: case.settings[name] for name in ("num_warps", "num_stages") if name in case.settings}
    constants = {name: value for name, value in case.settings.items() if name not in options}
    even = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(case.kernel.arg_names)
        if types[name].startswith("*") or name.endswith("_stride")
    }
    source = ASTSource(fn=case.kernel, signature=types, constexprs=constants, attrs=even)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return {
        "kernel": case.kernel.fn.__name__,
        "case": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "target": f"sm_{capability}",
        "main": case.main,
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        **assembled(compiled.asm["ptx"]),
        "tensor_cores": any(word in compiled.asm["ptx"] for word in ("mma.sync", "wgmma.mma_async")),
    }


def assembled(ptx: str) -> dict[str, int]:
    """Registers and spills, as ptxas reports them for the target that the PTX names."""
    target = re.findall(r"^\.target (\w+)", ptx, re.M)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [get_ptxas(90).path, "-v", f"-arch={target}", str(path), "-o", str(path.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = sum(int(number) for number in re.findall(r"(\d+) bytes spill", said))
    return {"registers": max(int(number) for number in re.findall(r"Used (\d+) registers", said)), "spills": spills}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown, both targets in one line: sm_80 / sm_90."""
    lines = [
        "| kernel | case | dtype | warps | shared memory, bytes | registers a thread | spills, bytes |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    together: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        together.setdefault((row["kernel"], row["case"], row["dtype"], row["warps"]), []).append(row)
    for key, found in together.items():
        figures = (" / ".join(f"{row[name]:,}" for row in found) for name in ("shared", "registers", "spills"))
        lines.append("| " + " | ".join([*map(str, key), *figures]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--main", action="store_true", help="the sizes of the published models alone")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    wanted = [case for case in cases() if case.main or not given.main]
    rows = [compile_case(case, capability) for case in wanted for capability in given.capability]
    print(json.dumps({"rows": rows, "table": table(rows)}) if given.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
