"""Golden curves: every loss term of 20 steps of each family of runs, and the figures of small evaluations, kept as JSON.

    python -m tests.golden.record          compare the code with the recording of this kind of machine, and say what moved
    python -m tests.golden.record --write  record anew, on purpose: the commit that does so says why the numbers moved

A recording (tests/golden/curves*.json) holds for one kind of processor: another one sums in another order, and after some steps the
last bit decides between two negatives, from where on the curves part. Without a recording of its kind a machine is held against
the nearest one, to 1e-5; where that fails nothing is known, and --write on the commit before makes a recording to compare with.

Everything goes through the entry points of the commands (train, mine, evaluate) in one process with one thread, on a corpus that is
packed here, so that a change of the code's inner structure cannot touch what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
UNKNOWN = 3  # exit status: numbers differ from those of another kind of machine
STEPS = 20
TOLERANCE = 1e-5  # relative, on another kind of machine than the one that recorded

ENCODER = [
    "model.hidden_size=32", "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.intermediate_size=64",
    "model.dropout=0.1", "batch.pairs=4", "batch.accumulation=2", "optimiser.lr=1e-3", f"optimiser.steps={STEPS}",
    "optimiser.warmup_steps=4", "log.every=1", "log.panel_every=0", "log.examples=0", "log.checkpoint_every=0",
]  # fmt: skip
FINE_TUNED = ["negatives.count=11", "negatives.keep=3", "synthetic.maskings=2", "synthetic.refills=3"]
TAGS = [*ENCODER, *FINE_TUNED, "loss.syn=0.5", "loss.mlm=0.1"]
MATCHER = [
    "matcher.embed_size=12", "matcher.word_size=8", "batch.pairs=8", f"optimiser.steps={STEPS}",
    "optimiser.decay_at=[15]", "quintuplet.warmup_steps=3", "log.every=1", "log.checkpoint_every=0",
]  # fmt: skip
VSRN = [*MATCHER, "matcher.caption_hidden=8"]
OFFLINE = ["offline.first=1", "offline.last=19"]

# family -> (recipe, settings, the family it starts from). {vsrn} stands for the candidates that family `vsrn` found.
FAMILIES: dict[str, tuple[str, list[str], str]] = {
    "pretrain": ("published-pretrain-base", [*ENCODER, "batch.tokens=0",
                 "pretrain.mix={itm: 2, mlm: 2, mrfr: 2, mrckl: 1, mrc: 1}"], ""),
    "baseline": ("baseline-base-coco", [*ENCODER, *FINE_TUNED], "pretrain"),
    "shared": ("baseline-base-coco", [*ENCODER, *FINE_TUNED, "negatives.shared=true"], "pretrain"),
    "tags": ("tags-base-coco", TAGS, "pretrain"),
    "tagsdc": ("tagsdc-base-coco", [*TAGS, "loss.disc=0.2", "loss.corr=0.2"], "tags"),
    "vsrn": ("coco-boxes-vsrn", VSRN, ""),
    "scan": ("coco-boxes-scan", MATCHER, ""),
    "bfan": ("coco-boxes-bfan", MATCHER, ""),
    "scan-offline": ("coco-boxes-scan-aoq", [*MATCHER, *OFFLINE, "quintuplet.kind=offline", "offline.candidates={vsrn}"], "scan"),
    "bfan-quintuplet": ("coco-boxes-bfan-aoq", [*MATCHER, *OFFLINE, "quintuplet.kind=quintuplet",
                        "offline.candidates={vsrn}"], "bfan"),
    "vsrn-adaptive": ("coco-boxes-vsrn-aoq", [*VSRN, *OFFLINE, "offline.candidates={vsrn}", "offline.remine_every=8"], "vsrn"),
    "baseline-offline": ("baseline-base-coco", [*ENCODER, *FINE_TUNED, *OFFLINE, "offline.replace_random=true",
                         "offline.candidates={vsrn}", "offline.remine_every=8", "offline.pool=6"], "pretrain"),
    "tagsdc-adaptive": ("tagsdc-base-coco", [*TAGS, *OFFLINE, "loss.disc=0.2", "loss.corr=0.2", "quintuplet.kind=adaptive",
                        "offline.candidates={vsrn}"], "tags"),
}  # fmt: skip
EVALUATIONS = {
    "evaluate": ["--checkpoint", "{run}/tagsdc", "--pairs", "{data}/edits/test"],
    "evaluate-matcher": ["--checkpoint", "{run}/scan"],
    "rerank": ["--checkpoint", "{run}/tagsdc", "--shortlist", "{run}/vsrn", "--rerank", "2", "4"],
    "ensemble": ["--checkpoint", "{run}/scan", "--ensemble", "{run}/vsrn", "{run}/bfan"],
}
NOT_NUMBERS_OF_THE_CODE = ("time_s", "speed/", "memory/")  # of a row of log.jsonl


def machine() -> dict[str, str]:
    """What must be the same for sums to be the same to the bit."""
    import torch

    cpus = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpus.read_text().splitlines() if "model name" in line] if cpus.is_file() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "model": "-".join(model_of(cpus.read_text()) if cpus.is_file() else []),
    }


def model_of(cpuinfo: str) -> list[str]:
    """Family, model and stepping of an x86 processor: several have one name."""
    found = dict(line.split(":", 1) for line in cpuinfo.split("\n\n")[0].splitlines() if ":" in line)
    return [value.strip() for key, value in found.items() if key.strip() in ("cpu family", "model", "stepping")]


def measure(folder: Path) -> dict[str, Any]:
    """All curves and figures: {family: {term: [per step]}, evaluation: {figure: value}}. In two processes, one after the other:
    mining leaves the process group, in which training could not go on."""
    for part in PARTS:
        subprocess.run([sys.executable, "-m", "tests.golden.record", "--part", part, str(folder)], check=True)
    out: dict[str, Any] = {family: curve(folder / "run" / family / "log.jsonl") for family in FAMILIES}
    mined = sorted((folder / "run" / "vsrn" / "candidates").glob("*.npy"))
    out["mine"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in mined}
    return out | {name: figures(json.loads((folder / f"{name}.json").read_text())) for name in EVALUATIONS}


def first_part(folder: Path) -> None:
    """Pack, train what needs no candidates, mine."""
    from preprocess import pack
    from tagsds import mine

    data = str(folder / "data")
    pack.run(["world", "--out", data, "--train", "60", "--dev", "12", "--test", "20", "--shard-size", "30", "--workers", "1"])
    train_families(folder, lambda settings: "{vsrn}" not in "".join(settings))
    run = folder / "run" / "vsrn"
    mine.main(
        ["--checkpoint", str(run), "--data", data, "--captions", "40", "--images", "10", "--output", str(run / "candidates")]
    )


def second_part(folder: Path) -> None:
    """Train with candidates, evaluate."""
    from tagsds import evaluate

    train_families(folder, lambda settings: "{vsrn}" in "".join(settings))
    for name, arguments in EVALUATIONS.items():
        given = [text.format(run=folder / "run", data=folder / "data") for text in arguments]
        results = str(folder / f"{name}.json")
        evaluate.main([*given, "--data", str(folder / "data"), "--split", "test", "--output", results])


PARTS = {"first": first_part, "second": second_part}


def train_families(folder: Path, wanted: Callable[[list[str]], bool]) -> None:
    import torch

    from tagsds import train

    torch.set_num_threads(1)
    ds_config = folder / "ds.json"
    ds_config.write_text('{"zero_optimization": {"stage": 1}}')
    run = folder / "run"
    for family, (recipe, settings, start) in FAMILIES.items():
        if wanted(settings):
            given = [text.replace("{vsrn}", str(run / "vsrn" / "candidates")) for text in settings]
            given += [f"init={run / start}"] if start else []
            command = ["--recipe", recipe, "--data", str(folder / "data"), "--output", str(run / family)]
            train.main([*command, "--deepspeed_config", str(ds_config), *given])


def curve(log: Path) -> dict[str, list[float]]:
    """{name: [value of each step that has it]} of a run's log."""
    out: dict[str, list[float]] = {}
    for line in log.read_text().splitlines():
        for name, value in json.loads(line).items():
            if isinstance(value, float) and not name.startswith(NOT_NUMBERS_OF_THE_CODE):
                out.setdefault(name, []).append(value)
    return out


def figures(results: Any, prefix: str = "") -> dict[str, float]:
    """Every number in a results file but times and where it came from, by its path."""
    if isinstance(results, bool | str | None):
        return {}
    if isinstance(results, int | float):
        return {prefix.rstrip("/"): float(results)}
    items = results.items() if isinstance(results, dict) else enumerate(results)
    out: dict[str, float] = {}
    for key, value in items:
        if str(key) not in ("seconds", "pairs_per_second", "provenance", "scoring"):
            out |= figures(value, f"{prefix}{key}/")
    return out


def differences(golden: Any, found: Any, exact: bool, path: str = "") -> list[str]:
    """Where two recordings differ: to the bit, or by more than TOLERANCE."""
    if isinstance(golden, dict) and isinstance(found, dict):
        absent = [f"{path}{key}: only in one of the two" for key in golden.keys() ^ found.keys()]
        both = golden.keys() & found.keys()
        return absent + [d for key in both for d in differences(golden[key], found[key], exact, f"{path}{key}/")]
    if isinstance(golden, list) and isinstance(found, list):
        if len(golden) != len(found):
            return [f"{path}: {len(found)} values instead of {len(golden)}"]
        return [d for n, pair in enumerate(zip(golden, found)) for d in differences(*pair, exact, f"{path}{n}/")]
    if golden == found:
        return []
    if not exact and isinstance(golden, float) and isinstance(found, float):
        if abs(golden - found) <= TOLERANCE * max(abs(golden), abs(found), 1e-3):
            return []
    if not exact and isinstance(golden, str):  # checksums of mined tables: neighbours of equal score may change places
        return []
    return [f"{path[:-1]}: {golden} -> {found}"]


def as_lines(found: dict[str, Any]) -> str:
    """JSON with a line a curve, so that a difference of two recordings can be read."""
    families = [
        f"{json.dumps(family)}: {{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(curves.items())) + "}"
        for family, curves in sorted(found["curves"].items())
    ]
    return f'{{"machine": {json.dumps(found["machine"])},\n"curves": {{\n' + ",\n".join(families) + "}}\n"


def recordings() -> dict[Path, dict[str, Any]]:
    return {path: json.loads(path.read_text()) for path in sorted(FOLDER.glob("curves*.json"))}


def own_recording(machine: dict[str, str], known: dict[Path, dict[str, Any]]) -> Path | None:
    """The one that was made on this kind of machine. Older ones do not tell the model."""
    return next((path for path, golden in known.items() if golden["machine"].items() <= machine.items()), None)


def compare(found: dict[str, Any]) -> tuple[bool, list[str]]:
    """(whether bits are compared, what moved) against the recording of this kind of machine, or the nearest one."""
    known = recordings()
    own = own_recording(found["machine"], known)
    exact = own is not None
    moved = [sorted(differences(known[path]["curves"], found["curves"], exact)) for path in ([own] if own else known)]
    return exact, min(moved, key=len)


def alone(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a run of one process with one thread, by plain torch: kernels round, and drop, in another way."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    one = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    quiet = {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return environment | one | quiet | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TAGSDS_KERNELS": "reference"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="record anew")
    parser.add_argument("--output", type=Path, help="write what was found here as well")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        return PARTS[args.part[0]](Path(args.part[1]))
    os.environ.update(alone({}))
    with tempfile.TemporaryDirectory() as folder:
        found = {"machine": machine(), "curves": measure(Path(folder))}
    own = own_recording(found["machine"], recordings())
    new = FOLDER / f"curves-{re.sub('[^a-z0-9]+', '-', ' '.join(found['machine'].values()).lower()).strip('-')}.json"
    for path in [args.output] * bool(args.output) + [own or new] * args.write:
        path.write_text(as_lines(found))
    if not args.write:
        exact, moved = compare(found)
        print("\n".join(moved) or f"nothing moved ({'to the bit' if exact else f'to {TOLERANCE} relative'})")
        sys.exit((1 if exact else UNKNOWN) if moved else 0)


if __name__ == "__main__":
    main()
