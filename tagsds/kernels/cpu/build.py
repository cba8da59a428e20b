"""Compile the C++ kernels once for this processor and keep the library in the user's cache.

No headers of PyTorch are needed, so that it takes seconds. The library's name holds a digest of the sources, the compiler and the
processor's features: a home shared by different machines holds one library for each, and nothing is ever stale or locked.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from torch import Tensor

SOURCES = Path(__file__).parent
FLAGS = (
    "-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno",
    "-fno-trapping-math",
)  # fmt: skip


class NotBuiltError(Exception):
    """Why there is no library."""


@lru_cache
def library() -> ctypes.CDLL:
    """The compiled kernels. NotBuiltError where they cannot be compiled or loaded."""
    wanted = os.environ.get("CXX", "g++")
    compiler = shutil.which(wanted)
    if platform.system() != "Linux" or compiler is None:
        raise NotBuiltError(f"{wanted} is not installed" if compiler is None else "they are built on Linux only")
    path = cache_folder() / f"cpu-{digest(compiler)}.so"
    if not path.is_file():
        compile_library(compiler, path)
    try:
        return ctypes.CDLL(str(path))  # PyTorch has loaded its OpenMP: the library finds that one, with its number of threads
    except OSError as error:
        raise NotBuiltError(str(error)) from error


def at(x: Tensor) -> ctypes.c_void_p:
    """Where a tensor's numbers begin, as the kernels take it."""
    return ctypes.c_void_p(x.data_ptr())


def cache_folder() -> Path:
    """TAGSDS_CACHE, or tagsds in the user's cache folder."""
    given = os.environ.get("TAGSDS_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tagsds"


def digest(compiler: str) -> str:
    """Of all that the compiled code depends on."""
    out = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted(SOURCES.glob("*.cpp")) + sorted(SOURCES.glob("*.h")):
        out.update(source.read_bytes())
    out.update(subprocess.run([compiler, "--version"], capture_output=True).stdout)
    cpus = Path("/proc/cpuinfo")
    features = [line for line in cpus.read_text().splitlines() if line.startswith(("flags", "Features"))] if cpus.is_file() else []
    out.update((features[0] if features else platform.processor()).encode())
    return out.hexdigest()[:16]


def compile_library(compiler: str, path: Path, *more: str) -> None:
    """Into a file of its own first: several ranks may compile at the same time, and the last one to rename wins. `more`: flags."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / path.name
            sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
            done = subprocess.run([compiler, *FLAGS, *more, *sources, "-o", str(made)], capture_output=True, text=True)
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or [str(done.returncode)]
                raise NotBuiltError(f"{compiler} failed: {last[0]}")
            made.rename(path)
    except OSError as error:
        raise NotBuiltError(str(error)) from error
