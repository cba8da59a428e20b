"""Pictures, drawings and named regions of a split's images, one image at a time: shards are looked into where the image lies, and
never read whole."""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from PIL import Image as Pillow
from torch import Tensor

from tagsds.data.shard_files import AGAIN, check_shard, places_of_members
from tagsds.errors import UserError
from tagsds.formats.manifest import Manifest
from tagsds.reporting.boxes import ASPECT, boxes_svg, class_names
from tagsds.reporting.pictures import MOST_PIXELS, aspect_of, check_directory, picture_in, pictures_of
from tagsds.reporting.wording import sentence_of
from tagsds.serve.limits import SIDE
from tagsds.serve.recent import Recent

INDICES = 64  # shards whose members' places are kept
NAMED = 1 << 14  # images whose regions' names are kept
MEMBERS = ("boxes.npy", "classes.npy", "image.jpg", "image.png")
BEGINNINGS = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n", "image/png"), (b"RIFF", "image/webp"))
WHOLE = 0.999  # of the image's area: a region as large as this is not drawn unless it has a class


@dataclass(frozen=True)
class Picture:
    """Encoded bytes; `tag` tells whether they are the same as before. `drawn` from the regions, as no picture was there."""

    content: bytes
    media_type: str
    tag: str
    drawn: bool

    @staticmethod
    def of(content: bytes, media_type: str, drawn: bool = False) -> Picture:
        return Picture(content, media_type, hashlib.sha256(content).hexdigest()[:24], drawn)


class Album:
    """Images by their number in the split. Every method may be called from several threads.

    boxes    float32 [n, 4] of an image, by its number
    folder   picture files by key, which come before the pictures in the shards; None: those of the shards alone
    """

    def __init__(self, manifest: Manifest, split: str, keys: Sequence[str], folder: Path | None, cache_mib: int) -> None:
        if folder is not None:
            check_directory(folder)
        self.manifest, self.keys, self.folder = manifest, keys, folder
        self.shards = manifest.shards(split)
        self.ends = list(accumulate(shard["samples"] for shard in self.shards))
        self._places: Recent[dict[str, dict[str, tuple[int, int]]]] = Recent(INDICES)
        self._names: Recent[list[str]] = Recent(NAMED)
        self._pictures: Recent[Picture] = Recent(cache_mib << 20, lambda picture: len(picture.content))

    def sample(self, row: int) -> dict[str, bytes]:
        """Those of MEMBERS that the image's sample has. UserError for a damaged or changed shard."""
        number = bisect_right(self.ends, row)
        path = self.manifest.folder / self.shards[number]["file"]
        places = self._places.get(number, lambda: places_of_members(check_shard(path.parent, self.shards[number], checksum=False)))
        found, members = {}, places.get(self.keys[row])
        if members is None:
            raise UserError(f"{path} has no image {self.keys[row]} any more; {AGAIN}.")
        with open(path, "rb") as file:
            for name in MEMBERS:
                if name in members:
                    file.seek(members[name][0])
                    found[name] = file.read(members[name][1])
        return found

    def names(self, row: int, count: int) -> list[str]:
        """The most probable class of each of the image's `count` regions, "" where it has none."""
        if not self.manifest.class_names:
            return [""] * count
        where = f"{self.manifest.folder}: image {self.keys[row]}"
        return self._names.get(row, lambda: class_names(self.sample(row), self.manifest, where, count))

    def alt(self, row: int, count: int) -> str:
        """What the image shows, for who does not see it."""
        names = self.names(row, count)
        return sentence_of(names).replace("Boxes of", "Picture with").replace("Box of", "Picture with") if any(names) else (
            f"Picture {self.keys[row]}"
        )  # fmt: skip

    def picture(self, row: int, boxes: Tensor, small: bool = False) -> Picture:
        """The picture, or a drawing of the regions where there is none; `small`: at most SIDE pixels a side."""
        return self._pictures.get((row, small), lambda: self._make(row, boxes, small))

    def _make(self, row: int, boxes: Tensor, small: bool) -> Picture:
        if small:
            whole = self.picture(row, boxes)
            return whole if whole.drawn else smaller(whole)
        key, sample = self.keys[row], self.sample(row)
        given = pictures_of(self.folder, [key]).get(key) if self.folder is not None else None
        for content in (given, picture_in(sample)):
            media_type = next((name for begin, name in BEGINNINGS if content and content.startswith(begin)), None)
            if content and media_type and aspect_of(content):
                return Picture.of(content, media_type)
        names = self.names(row, len(boxes))
        sides = boxes[:, 2:] - boxes[:, :2]
        shown = [n for n, area in enumerate(sides.prod(dim=1).tolist()) if names[n] or area < WHOLE]
        drawing = boxes_svg(boxes[shown].numpy(), [names[n] for n in shown], ASPECT, standalone=True)
        return Picture.of(drawing.encode(), "image/svg+xml", True)


def smaller(picture: Picture) -> Picture:
    """At most SIDE pixels a side, as JPEG; the picture itself where it is small already, or cannot be decoded."""
    try:
        image: Pillow.Image = Pillow.open(io.BytesIO(picture.content))
        if max(image.size) <= SIDE or image.width * image.height > MOST_PIXELS:
            return picture
        image = image.convert("RGB")
        image.thumbnail((SIDE, SIDE))
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=85)
    except Exception:  # of a damaged picture: OSError, SyntaxError, struct.error and more
        return picture
    return Picture.of(stream.getvalue(), "image/jpeg")
