"""tagsds-project: a folder to work in without a checkout, with the SLURM scripts and the DeepSpeed files to edit."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tagsds.errors import UserError, command, reason
from tagsds.shipped import SHIPPED, SLURM, shipped


def make_project(folder: Path) -> list[Path]:
    """Copy the folders of `SHIPPED` into `folder`, which is made where it does not exist.

    returns  the copied files, sorted. Scripts that begin with #! can be executed.
    UserError where one of the folders is there already (nothing is overwritten), or cannot be written.
    """
    for name in SHIPPED:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists and may hold your changes; name another folder, or move it away.")
    copied = []
    try:
        for name in SHIPPED:
            source = shipped(name)
            (folder / name).mkdir(parents=True)
            for file in sorted(path for path in source.iterdir() if path.suffix in (".sh", ".json", ".md")):
                target = folder / name / file.name
                shutil.copyfile(file, target)
                target.chmod(0o755 if file.read_bytes().startswith(b"#!") else 0o644)  # a wheel does not keep the mode
                copied.append(target)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({reason(error)}); name another folder.") from error
    return sorted(copied)


def run() -> None:
    parser = argparse.ArgumentParser(
        prog="tagsds-project", description="Write SLURM scripts and DeepSpeed files into a folder, to be edited and run there."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="made where it does not exist; slurm/ and ds_configs/ go into it")
    folder = parser.parse_args().folder
    copied = make_project(folder)
    print(f"{len(copied)} files in {folder}; edit {folder / SLURM / 'env.sh'}, then try there: bash slurm/pretrain.sh --dry-run")


main = command(run)

if __name__ == "__main__":
    main()
