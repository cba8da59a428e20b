"""Freed memory is given back where a server asks for it, and kept where a training does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tagsds.malloc import libc
from tests.launch import ROOT

HOLES = """
import re, sys
from pathlib import Path
import torch
from tagsds import malloc
from tagsds.malloc import give_back_freed_memory, give_back_large_holes, keep_freed_memory

def rss():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

keep_freed_memory()
rows = [torch.ones(250_000) for _ in range(200)]  # of a megabyte each
before, rows = rss(), rows[::2]
kept = rss()
give_back_freed_memory()
given = rss()
malloc.LARGE = 500 << 20
small = [torch.ones(250_000) for _ in range(400)][::2]
give_back_large_holes()
few = rss()
large = [torch.ones(2_500_000) for _ in range(150)][::2]
give_back_large_holes()
print(before, kept, given, few, rss())
"""


def test_holes_between_blocks_go_back_to_the_system():
    if not libc():
        pytest.skip("the C library is not glibc: freed memory is its own business")
    said = subprocess.run([sys.executable, "-c", HOLES], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    before, kept, given, few, large = map(int, said.split())
    assert kept > before - 10 and 80 < before - given < 120
    assert few > given + 280, "200 MiB of holes stay"
    assert large < few + 1_000, "of 1,400 MiB half is holes, and goes back"
