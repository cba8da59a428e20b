"""Tiny inputs in published layouts, made on the fly."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from tagsds.files import sha256_of


class TinyCoco:
    """Four images of 100 x 80 pixels with two captions each; image 4 has no boxes. Files in COCO's layouts."""

    names = ("cat", "dog", "tennis racket")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = [
            {"id": i, "file_name": f"{i:012d}.jpg", "width": 100, "height": 80, "license": 1} for i in (1, 2, 3, 4)
        ]
        self.notes = [
            {"id": 10 * i + k, "image_id": i, "caption": f"A {colour} cat number {i} on a mat."}
            for i in (1, 2, 3, 4)
            for k, colour in enumerate(("black", "white"))
        ]
        self.boxes = {1: [(10, 10, 50, 40, 0)], 2: [(0, 0, 100, 80, 1), (5, 5, 5, 9, 2)], 3: [(1, 2, 3, 4, 2)]}
        self.split: object = {"train": [3, 1], "test": [2, 4]}

    def write(self) -> TinyCoco:
        notes = list(reversed(self.notes))  # the reader has to sort them by id
        self._json("captions.json", {"images": self.images, "annotations": notes})
        lines = [
            " ".join([f"val2017/{i:012d}.jpg", *(",".join(map(str, row)) for row in rows)])
            for i, rows in self.boxes.items()
        ]
        (self.folder / "boxes.txt").write_text("\n".join(lines) + "\n")
        (self.folder / "names.txt").write_text("\n".join(self.names) + "\n")
        categories = [{"id": 3 * k + 7, "name": name} for k, name in enumerate(self.names)]
        annotations = [
            {"id": 1, "image_id": i, "category_id": 3 * c + 7, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, rows in self.boxes.items()
            for x1, y1, x2, y2, c in (row for row in rows if len(row) == 5)
        ]
        self._json(
            "instances.json", {"images": self.images, "annotations": annotations, "categories": categories[::-1]}
        )
        self._json("split.json", self.split)
        return self

    def karpathy(self, splits: dict[int, str]) -> None:
        """karpathy.json with one sentence an image."""
        images = [
            {
                "cocoid": i,
                "filename": f"COCO_val2014_{i:012d}.jpg",
                "split": name,
                "sentences": [{"raw": f"a dog, image {i}", "sentid": 100 + i}],
            }
            for i, name in splits.items()
        ]
        self._json("karpathy.json", {"images": images, "dataset": "coco"})

    def _json(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value))

    def arguments(self, out: Path, *more: str, boxes: str = "text", split: str = "split.json") -> list[str]:
        f = self.folder
        kind = ["--boxes", f"{f}/boxes.txt", "--class-names", f"{f}/names.txt"]
        kind = kind if boxes == "text" else ["--boxes", f"{f}/instances.json"]
        head = ["coco", "--captions", f"{f}/captions.json", *kind, "--split", f"{f}/{split}"]
        return [*head, "--out", str(out), "--workers", "1", "--spans", "rules", *more]


def tsv_line(name: str, confidence: np.ndarray, features: np.ndarray, boxes: np.ndarray | None = None) -> bytes:
    """A ten-column line for an image of 100 x 50 pixels; class i at box i."""
    n = len(confidence)
    if boxes is None:
        boxes = np.tile(np.array([[10, 5, 60, 45]], dtype=np.float32), (n, 1))

    def pack(array: np.ndarray, dtype: type) -> bytes:
        return base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes())

    fields = [
        name.encode(), b"50", b"100",
        pack(np.arange(n), np.int64), pack(confidence, np.float32),
        pack(np.zeros(n), np.int64), pack(np.zeros(n), np.float32),
        str(n).encode(), pack(boxes, np.float32), pack(features, np.float32),
    ]  # fmt: skip
    return b"\t".join(fields) + b"\n"


def load(out: Path, split: str) -> dict[str, dict]:
    """Samples of a split by key, in order."""
    samples: dict[str, dict] = {}
    for shard in json.loads((out / "manifest.json").read_text())["splits"][split]["shards"]:
        with tarfile.open(out / shard["file"]) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                data = tar.extractfile(member).read()
                value = np.load(io.BytesIO(data)) if name.endswith(".npy") else json.loads(data)
                samples.setdefault(key, {})[name] = value
    return samples


def contents(folder: Path) -> dict[str, str]:
    """Path inside the folder -> checksum, of every file."""
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}
