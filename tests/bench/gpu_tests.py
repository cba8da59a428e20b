"""`make test-gpu`: the tests that are marked `gpu`, and a sentence where there is no GPU.

Only the files that hold such a test are collected, so that packages which other tests import may be missing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def files() -> list[str]:
    """Test files with a test marked `gpu`."""
    mark = "pytest.mark." + "gpu"
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text())


def main() -> int:
    if not torch.cuda.is_available():
        print("There is no GPU here: the tests marked gpu are collected and skipped. They need one that torch.cuda sees.")
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", *files()], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
