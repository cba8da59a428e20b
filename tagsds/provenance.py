"""Which code, files and machine made a result."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import torch
import transformers

from tagsds.files import sha256_of


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


def provenance(checkpoint: Path | None, data: Path | None, **settings: Any) -> dict[str, Any]:
    """Enough to run the evaluation again: files, settings, versions, machine."""
    weights = checkpoint / "model.safetensors" if checkpoint else None
    return {
        "checkpoint": str(checkpoint.resolve()) if checkpoint else None,
        "weights_sha256": sha256_of(weights) if weights and weights.is_file() else None,
        "data": str(data.resolve()) if data else None,
        "manifest_sha256": sha256_of(data / "manifest.json") if data else None,
        **settings,
        "tagsds": version(),
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.node()}, {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
