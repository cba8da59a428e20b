"""Which code made a file."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path


def commit() -> str | None:
    """Commit of the checkout this package lies in, '-dirty' behind it where files differ; None outside a checkout."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def version() -> str | None:
    """Of the installed package; None where it runs from a checkout that was never installed."""
    try:
        return installed_version("tagsds")
    except PackageNotFoundError:
        return None
