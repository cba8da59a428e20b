"""Folders that come with the package: DeepSpeed files and SLURM scripts.

In a checkout they lie at its top, where people look for them; setup.py puts them inside the installed package.
"""

from __future__ import annotations

from pathlib import Path

from tagsds.errors import UserError

PACKAGE = Path(__file__).resolve().parent
DS_CONFIGS, SLURM = "ds_configs", "slurm"
SHIPPED = (SLURM, DS_CONFIGS)


def shipped(name: str) -> Path:
    """The folder DS_CONFIGS or SLURM. UserError where the installation lacks it."""
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(f"{PACKAGE / name} is missing from this installation; install tagsds again.")


def checkout() -> Path | None:
    """The checkout that this package runs from; None where it is installed without one."""
    return PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None
