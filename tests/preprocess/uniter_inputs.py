"""A txt_db and an img_db in UNITER's published layout, to be changed by a test before they are packed."""

from __future__ import annotations

import json
from pathlib import Path

import published as pub
from published import ids_of

NAMES = ("coco_train2014_000000000009.npz", "coco_train2014_000000000025.npz", "coco_train2014_000000000030.npz")
TREE = {
    "relation": [{"ids": [3, 4]}],
    "attribute": [{"ids": [1]}],
    "node": [{"ids": [1, 2]}, {"ids": [6]}],
}
CAPTIONS = {
    "7": {"input_ids": ids_of("a black cat sits on the mat ."), "tree": TREE},
    "8": {"input_ids": ids_of("a man rid ##ing a bike"), "tree": {"relation": [{"ids": [2, 3]}], "attribute": [], "node": []}},
    "5": {"input_ids": ids_of("the dog"), "raw": "WORDS THAT no tokenizer would split so", "tree": TREE | {"relation": [],
          "attribute": [], "node": [{"ids": [1]}]}},
    "6": {"input_ids": ids_of("a cat [UNK] ."), "tree": {"relation": [], "attribute": [], "node": []}},
}  # fmt: skip
IMAGES = {NAMES[1]: ["8", "7"], NAMES[0]: ["5"], NAMES[2]: ["6"]}
KEYS = [f"{int(name[-16:-4]):012d}" for name in IMAGES]


class UniterInputs:
    """A folder with a txt_db of three images and an img_db, to be changed before `arguments` is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.txt, self.img, self.vocabulary = folder / "txt.db", folder / "img" / "coco_train2014", folder / "vocab.txt"
        self.arrays = {name: pub.image_arrays(seed) for seed, name in enumerate(NAMES)}

    def write(
        self, variant: str = "feat_th0.2_max100_min10", counts: dict | None = None, captions: dict | None = None
    ) -> UniterInputs:
        pub.write_vocabulary(self.vocabulary)
        pub.write_txt_db(self.txt, CAPTIONS if captions is None else captions, IMAGES)
        self.write_images(variant, {name: self.value(variant, arrays) for name, arrays in self.arrays.items()})
        if counts is not None:
            (self.img / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))
        return self

    def value(self, variant: str, arrays: dict) -> bytes:
        return (pub.npz_value if variant.endswith("_compressed") else pub.msgpack_value)(arrays)

    def write_images(self, variant: str, values: dict[str, bytes]) -> None:
        pub.write_img_db(self.img / variant, values)

    def arguments(self, out: str = "out", *more: str) -> list[str]:
        place = ["--img", str(self.img), "--tokenizer", str(self.vocabulary), "--out", str(self.folder / out)]
        return ["uniter-lmdb", "--txt", f"train={self.txt}", *place, "--workers", "1", "--spans", "rules", *more]
