"""Draw the pictures of docs/how_it_works.md.

python -m tagsds.figures docs/pictures
python -m tagsds.figures docs/pictures --checkpoint RUN --data SHARDS      first record the example that they show
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tagsds.errors import UserError, command
from tagsds.figures import hardest, loop, packing, quintuplet, ranks
from tagsds.figures.canvas import Picture, svg_of
from tagsds.figures.example import Example
from tagsds.files import write_text

PICTURES: tuple[Picture, ...] = tuple(module.PICTURE for module in (loop, hardest, ranks, quintuplet, packing))


def draw_all(folder: Path, example: Example) -> list[Path]:
    """Write FOLDER/<name>.svg for each picture."""
    paths = []
    for picture in PICTURES:
        paths.append(folder / f"{picture.name}.svg")
        write_text(paths[-1], svg_of(picture, example))
    return paths


def run() -> None:
    parser = argparse.ArgumentParser(prog="python -m tagsds.figures", description="Draw the pictures of docs/how_it_works.md.")
    parser.add_argument("folder", type=Path, help="holds example.json; the SVG files are written beside it")
    parser.add_argument("--checkpoint", type=Path, help="a TAGS-DC run of the drawn world: record example.json anew with it")
    parser.add_argument("--data", type=Path, help="with --checkpoint: packed shards")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.data is None):
        raise UserError("--checkpoint and --data go together; give both, or none to draw the example that is there.")
    path = args.folder / "example.json"
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.checkpoint is not None:
        from tagsds.api import load
        from tagsds.figures.example import record

        record(load(args.checkpoint, args.data), args.data).save(path)
    for drawn in draw_all(args.folder, Example.load(path)):
        print(drawn)


main = command(run)

if __name__ == "__main__":
    main()
