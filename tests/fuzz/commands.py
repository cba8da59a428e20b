"""Damaged files through the entry functions of the commands: none shows a traceback.

    python -m tests.fuzz.commands --count 100 --seed 0

A command may end well (the damage is harmless or allowed), or with exit status 2 and one line "error: ..." on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocess import pack
from tagsds import evaluate, mine, report, train
from tagsds.files import write_checksums
from tagsds.models import convert
from tagsds.models.card import Card
from tests import stand_in
from tests import tiny_corpus as tiny
from tests.fuzz import damage
from tests.fuzz.corpus_targets import reseal_corpus
from tests.fuzz.run_targets import ROOT

RECIPE = """objective: retrieval
optimiser: {steps: 1}
data: {split: test, cache: none}
negatives: {count: 2, keep: 1}
batch: {pairs: 2}
"""


def make(folder: Path) -> None:
    """A corpus with edits, an encoder, a matcher, a recipe, a DeepSpeed file and a run that was evaluated."""
    tiny.write_shards(folder / "data", images=4, pictures=False)
    path = folder / "data" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_caption_pieces": 9}))  # as --verify wants it
    tiny.write_edits(folder / "edits" / "object.json", images=4)
    for name, write in (("encoder", tiny.write_checkpoint), ("matcher", stand_in.write_matcher)):
        write(folder / name / "export")
        Card(kind="tagsds_uniter").write(folder / name / "export")
        write_checksums(folder / name / "export")
    (folder / "recipe.yaml").write_text(RECIPE)
    shutil.copy(ROOT / "ds_configs" / "zero0.json", folder / "ds.json")


def commands(folder: Path) -> dict[str, tuple[Callable[[list[str]], Any], list[str], list[str]]]:
    """name -> (entry function, arguments, patterns of the files it reads)."""
    data, encoder, matcher = (str(folder / name) for name in ("data", "encoder", "matcher"))
    base = ["--checkpoint", encoder, "--data", data]
    corpus, weights = ["data/*", "data/tokenizer/*"], ["encoder/export/*"]
    return {
        "evaluate": (evaluate.main, [*base, "--pairs", str(folder / "edits")], [*corpus, *weights, "edits/*"]),
        "evaluate --shortlist": (evaluate.main, [*base, "--shortlist", matcher, "--rerank", "2"], ["matcher/export/*"]),
        "evaluate --ensemble": (evaluate.main, ["--checkpoint", matcher, "--data", data, "--ensemble", str(folder / "second")],
                                ["second/export/*"]),
        "mine": (mine.main, ["--checkpoint", matcher, "--data", data, "--split", "test", "--captions", "5", "--images", "2",
                             "--output", str(folder / "mined")], [*corpus, "matcher/export/*"]),
        "report": (report.main, [encoder, "--output", str(folder / "report.html")], ["encoder/results-test.json"]),
        "convert": (lambda arguments: convert_main(arguments), [encoder, "--out", str(folder / "back.pt")], weights),
        "pack --verify": (lambda arguments: verify_main(arguments), ["verify", data], corpus),
        "train": (train.main, ["--recipe", str(folder / "recipe.yaml"), "--data", data, "--output", str(folder / "run"),
                               "--deepspeed_config", str(folder / "ds.json"), "init=" + encoder],
                  ["recipe.yaml", "ds.json", *corpus, *weights]),
    }  # fmt: skip


def convert_main(arguments: list[str]) -> None:
    from tagsds.errors import command

    command(lambda: convert.run(arguments))()


def verify_main(arguments: list[str]) -> None:
    from tagsds.errors import command

    command(lambda: pack.run(arguments))()


class TrainingBeginsError(Exception):
    """Training would begin: everything that the command reads was sound."""


def without_training() -> contextlib.AbstractContextManager[None]:
    """tagsds-train up to its first step, in a process without DeepSpeed: what is read is read before."""

    @contextlib.contextmanager
    def patched() -> Any:
        from tagsds.ranks import World

        def begin(*_: Any, **__: Any) -> None:
            raise TrainingBeginsError

        before = train.init_distributed, train.build_optimiser
        train.init_distributed, train.build_optimiser = (lambda: World()), begin
        try:
            yield
        except TrainingBeginsError:
            pass
        finally:
            train.init_distributed, train.build_optimiser = before

    return patched()


def run_case(clean: Path, seed: int, number: int) -> tuple[str, str, str]:
    """(command, what was damaged, "" where it ended as it should, else a traceback)."""
    rng = random.Random(f"commands {seed}/{number}")
    folder = clean.parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(clean, folder)
    name, (main, arguments, patterns) = rng.choice(list(commands(folder).items()))
    path = rng.choice(sorted({p for pattern in patterns for p in folder.glob(pattern) if p.is_file() and p.name != "README.md"}))
    kind = damage.choose(rng, path.name)
    found = kind(rng, path.read_bytes(), [b"{}", b"[]", b"PK\x03\x04"])
    path.unlink()
    if found is not None:
        path.write_bytes(found)
    if rng.random() < 0.5:  # the content is looked at, not only the checksums
        with contextlib.suppress(Exception):
            reseal_corpus(folder / "data", path.name)
        for export in folder.glob("*/export"):
            if path.name != "checksums.json":
                write_checksums(export)
    err, about = io.StringIO(), f"{path.relative_to(folder)}, {kind.__name__}"
    try:
        call(main, arguments, err)
    except SystemExit as ended:
        lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        if ended.code == 2 and len(lines) == 1 and "Traceback" not in err.getvalue():
            return name, about, ""
        return name, about, f"exit {ended.code}: {err.getvalue()[-2000:]}"
    except BaseException:
        return name, about, traceback.format_exc()
    return name, about, ""


def call(main: Callable[[list[str]], Any], arguments: list[str], err: io.StringIO) -> None:
    """A command as it is, but for its words on stdout and for training."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), without_training():
        warnings.simplefilter("ignore")
        main(arguments)


def run_all(place: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Cases of each command, and what went wrong."""
    clean = place / "clean"
    make(clean)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shutil.copytree(clean / "matcher", clean / "second")
        evaluate.main(["--checkpoint", str(clean / "encoder"), "--data", str(clean / "data")])
    for main, arguments, _ in commands(shutil.copytree(clean, place / "undamaged")).values():
        call(main, arguments, err := io.StringIO())  # a SystemExit here: the inputs are no good
        assert "error: " not in err.getvalue()
    counts: Counter[str] = Counter()
    bad = []
    for number in range(count):
        name, about, wrong = run_case(clean, seed, number)
        counts[name] += 1
        if wrong:
            bad.append(f"case {number}: {name}, {about}: {wrong}")
    return counts, bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        counts, bad = run_all(Path(place), options.count, options.seed)
    print(json.dumps(dict(counts)), f"{len(bad)} tracebacks", *bad, sep="\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
