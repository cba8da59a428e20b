"""Source `uniter-lmdb`: UNITER's released text and image databases (arXiv 1909.11740), TAGS' copy with parse trees too.

A txt_db is an LMDB with meta.json (CLS, SEP, MASK, v_range) and img2txts.json or txt2img.json beside it; a value holds
`input_ids` without [CLS] and [SEP], and in TAGS' copy `tree` = {relation, attribute, node: [{ids: positions in input_ids}]}.
An img_db holds `features`, `norm_bb` (x1, y1, x2, y2, w, h as fractions), `conf` and `soft_labels` (column 0 = background), in
one of the variants feat_th0.2_max100_min10, feat_numbb36 and all, each also `_compressed`.

The ids are kept as they are; captions are read image by image, nothing but the two indices is held in memory.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.arguments import split_path
from preprocess.pieces import CONTINUES, spell
from preprocess.records import Caption, ImageRecord, Span
from preprocess.sources.command import SourceCommand
from preprocess.sources.karpathy import image_key
from preprocess.sources.lmdb_reader import RefusedError, close_all, database, decode_text
from preprocess.sources.uniter_images import ImageDatabase, read_image
from tagsds.data.wordpiece import wordpiece_tokenizer
from tagsds.errors import UserError
from tagsds.files import read_json

KIND_OF_TREE = {"node": "object", "attribute": "attribute", "relation": "relation"}
SENTENCE_FIELDS = ("raw", "sentence", "sent", "caption", "text")  # of a value, where the text came along
SMALL_COCO = re.compile(r"^coco_(?=(?:train|val|test)\d{4}_)")  # UNITER's spelling; the key shall be COCO's number
INDEX_FILES = ("meta.json", "img2txts.json", "txt2img.json")


@dataclass(frozen=True)
class Entry:
    """Where an image and its captions are: numbers into the lists of databases, and their keys there."""

    txt: int
    captions: tuple[str, ...]
    img: int
    name: str


@dataclass
class UniterLmdbSource:
    """Index of images and caption ids; values are read on demand, in the process that packs them."""

    txt: list[Path]
    img: list[ImageDatabase]
    pieces: list[str]  # of the tokenizer, by id
    soft_labels: bool
    files: list[Path]
    index: dict[str, dict[str, Entry]] = field(default_factory=dict)  # split -> image key -> entry
    facts: dict = field(default_factory=dict)
    feature_dim: int = 0
    num_classes: int = 0
    background_class: bool = False
    class_names: list[str] = field(default_factory=list)
    name: str = "uniter-lmdb"
    has_boxes: bool = True
    imported_ids: bool = True

    @classmethod
    def read(
        cls, txt: list[tuple[str, Path]], img: list[Path], variant: str | None, tokenizer: str, soft_labels: bool
    ) -> UniterLmdbSource:
        """Check tokenizer and files, and find every image of every split. `txt`: (split, folder) in order."""
        close_all()  # an earlier run of this process may have opened other files of that name
        loaded = wordpiece_tokenizer(tokenizer)
        pieces = [str(loaded.convert_ids_to_tokens(i)) for i in range(len(loaded))]
        images = [ImageDatabase.find(folder, variant) for folder in img]
        folders = [folder for _, folder in txt]
        files = [folder / name for folder in folders for name in ("data.mdb", *INDEX_FILES) if (folder / name).is_file()]
        files += [path for database_ in images for path in database_.files()]
        source = cls(folders, images, pieces, soft_labels, files)
        try:
            names = [check_meta(folder, tokenizer, loaded) for folder in folders]
            source.facts = {"tokenizer_of_source": sorted({name for name in names if name})}
            for number, (split, _) in enumerate(txt):
                source._add(split, number)
            source._look_at_first()
        finally:
            close_all()  # before any worker is forked
        return source

    def _add(self, split: str, txt: int) -> None:
        """Enter the images of one txt_db, in the order of its index."""
        folder = self.txt[txt]
        owner = {key: name for name, part in self.index.items() for key in part}
        part = self.index.setdefault(split, {})
        for name, captions in captions_of_images(folder).items():
            key = image_key(SMALL_COCO.sub("COCO_", name))
            if key in owner or key in part:
                raise UserError(f"{folder}: image {name} of '{split}' is in '{owner.get(key, split)}' already; give one of them.")
            img = next((number for number, images in enumerate(self.img) if images.has(name)), None)
            if img is None:
                raise UserError(
                    f"{folder}: image {name} of '{split}' is in none of {', '.join(str(i.folder) for i in self.img)}; "
                    "give its img_db too."
                )
            part[key] = Entry(txt, tuple(captions), img, name)

    def _look_at_first(self) -> None:
        """Widths from the first image; a notice for a txt_db without trees."""
        entry = next((entry for part in self.index.values() for entry in part.values()), None)
        if entry is None:
            raise UserError(f"{self.txt[0]} lists no images; give a txt_db with img2txts.json or txt2img.json.")
        arrays = read_image(self.img[entry.img], entry.name, self.soft_labels)
        self.feature_dim = arrays["features"].shape[1]
        self.num_classes = arrays["soft_labels"].shape[1] if "soft_labels" in arrays else 0
        self.background_class = self.num_classes > 0
        first_of = {e.txt: e for part in reversed(self.index.values()) for e in reversed(part.values())}
        for number, entry in sorted(first_of.items()):
            if "tree" not in self._value(entry, entry.captions[0]):
                how = "come from rules on the spelt pieces" if self._spells() else "are left out: the tokenizer is no WordPiece"
                print(f"{self.txt[number]}: no parse trees; spans {how}.")

    def _spells(self) -> bool:
        """Whether pieces spell words the way that preprocess/pieces.py reads them."""
        return any(piece.startswith(CONTINUES) for piece in self.pieces)

    def splits(self) -> dict[str, list[str]]:
        """Keys in the order of the indices."""
        return {split: list(part) for split, part in self.index.items() if part}

    def texts(self, split: str) -> Iterable[str]:
        """None: the tokenizer is given."""
        return ()

    def edits(self, split: str) -> dict[str, list[dict[str, str]]]:
        """None."""
        return {}

    def record(self, split: str, key: str) -> ImageRecord:
        """Regions as stored (float16), in the order of the file, as many as the database's count says."""
        entry = self.index[split][key]
        images = self.img[entry.img]
        arrays = read_image(images, entry.name, self.soft_labels)
        if self.num_classes and "soft_labels" not in arrays:
            raise UserError(f"{images.file}: image {entry.name} has no soft_labels as others have; use --without-soft-labels.")
        return ImageRecord(
            key=key,
            regions=arrays["features"],
            boxes=arrays["boxes"],
            captions=[self._caption(entry, id_) for id_ in entry.captions],
            classes=arrays.get("soft_labels"),
            origin=str(images.file),
            captions_origin=str(self.txt[entry.txt] / "data.mdb"),
        )

    def _value(self, entry: Entry, id_: str) -> dict[str, Any]:
        source = database(self.txt[entry.txt])
        where = f"{source.file}: caption {id_}"
        value = source.get(id_)
        if value is None:
            raise UserError(f"{where} of image {entry.name} is missing though the index lists it; copy the folder again.")
        try:
            return decode_text(value)
        except RefusedError as error:
            raise UserError(f"{where} {error}; copy the folder again from its publisher.") from error

    def _caption(self, entry: Entry, id_: str) -> Caption:
        """Ids checked against the vocabulary; the text as it came, else spelt from the pieces."""
        where = f"{self.txt[entry.txt] / 'data.mdb'}: caption {id_}"
        value = self._value(entry, id_)
        ids = value.get("input_ids")
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            raise UserError(f"{where} has no list of input_ids; copy the folder again.")
        if min(ids) < 0 or max(ids) >= len(self.pieces):
            wrong = next(i for i in ids if not 0 <= i < len(self.pieces))
            raise UserError(
                f"{where} holds piece {wrong}, the tokenizer has {len(self.pieces)} pieces; give the one it was made with."
            )
        if value.get("img_fname", entry.name) != entry.name:
            raise UserError(f"{where} belongs to {value['img_fname']}, the index says {entry.name}; copy the folder again.")
        text = next((value[name] for name in SENTENCE_FIELDS if isinstance(value.get(name), str)), "")
        text = " ".join(text.split()) or spell([self.pieces[i] for i in ids])[0]
        spans: tuple[Span, ...] | None = None if self._spells() else ()
        if value.get("tree") is not None:
            spans = tree_spans(value["tree"], len(ids), where)
        return Caption(id_, text, spans, tuple(ids))


def captions_of_images(folder: Path) -> dict[str, list[str]]:
    """Image name -> caption ids, from img2txts.json, else from txt2img.json."""
    if (folder / "img2txts.json").is_file():
        path = folder / "img2txts.json"
        found = read_json(path)
    else:
        path = folder / "txt2img.json"
        found = {}
        for id_, name in _items(read_json(path), path):
            if not isinstance(name, str):
                raise UserError(f"{path}: caption {id_} does not name one image; give a txt_db of image-text retrieval.")
            found.setdefault(name, []).append(id_)
    for name, captions in _items(found, path):
        if not isinstance(captions, list) or not captions or not all(isinstance(id_, str) for id_ in captions):
            raise UserError(f"{path}: image {name} has no list of caption ids; copy the folder again.")
    return found


def _items(found: Any, path: Path) -> Iterable[tuple[str, Any]]:
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no map; copy the folder again.")
    return found.items()


def check_meta(folder: Path, name: str, tokenizer: Any) -> str:
    """UserError unless meta.json and the tokenizer agree; the name of the tokenizer that meta.json gives, or ''."""
    path = folder / "meta.json"
    meta = read_json(path)
    ours = {"CLS": tokenizer.cls_token_id, "SEP": tokenizer.sep_token_id, "MASK": tokenizer.mask_token_id}
    try:
        differs = [f"{key} {meta[key]} (tokenizer: {value})" for key, value in ours.items() if meta[key] != value]
        begin, end = meta["v_range"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} lacks CLS, SEP, MASK or v_range; give the folder of a UNITER txt_db.") from error
    if end != len(tokenizer):
        differs.append(f"v_range up to {end} (tokenizer: {len(tokenizer)})")
    first = tokenizer.get_vocab().get("!")
    if first is not None and first != begin:
        differs.append(f"v_range from {begin} (tokenizer: '!' is {first})")
    if differs:
        made_with = f" ({meta['tokenizer']})" if isinstance(meta.get("tokenizer"), str) else ""
        raise UserError(f"{path} does not fit --tokenizer {name}: {', '.join(differs)}; give the one it was made with{made_with}.")
    return Path(str(meta.get("tokenizer") or meta.get("toker") or "")).name


def tree_spans(tree: Any, count: int, where: str) -> tuple[Span, ...]:
    """Spans of a parse tree, by their first piece; a node without `ids` gives none. They may overlap: a node can hold its
    attribute."""
    spans: list[Span] = []
    try:
        for name, kind in KIND_OF_TREE.items():
            for entry in tree.get(name, []):
                if entry.get("ids") is None:  # a node that no word piece stands for
                    continue
                ids = tuple(sorted(set(entry["ids"])))
                if ids and not (type(ids[0]) is int and ids[0] >= 0 and ids[-1] < count):
                    raise UserError(
                        f"{where}: its tree names piece {ids[-1]} of {count}; the tree belongs to other input_ids, copy it again."
                    )
                if ids:
                    spans.append(Span(kind, pieces=ids))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{where}: its tree is not {{relation, attribute, node: [{{ids}}]}}; copy the folder again.") from error
    return tuple(sorted(spans, key=lambda span: span.pieces[0]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--txt", type=split_path, nargs="+", action="extend", required=True, metavar="SPLIT=DIR",
                        help="a txt_db and its split; a split may have several, one after the other")  # fmt: skip
    parser.add_argument("--img", type=Path, nargs="+", action="extend", required=True, metavar="DIR",
                        help="img_db folder, or the variant inside it; several are searched in this order")  # fmt: skip
    parser.add_argument("--variant", help="variant where an img_db holds several: feat_th0.2_max100_min10, all, ...")
    parser.add_argument("--without-soft-labels", action="store_true", help="leave classes.npy out (saves 2 bytes a class a region)")


def make(args: argparse.Namespace) -> UniterLmdbSource:
    return UniterLmdbSource.read(args.txt, args.img, args.variant, args.tokenizer, not args.without_soft_labels)


COMMAND = SourceCommand(
    "UNITER's released LMDB: tokenised captions (with trees or without) and region features", add_arguments, make,
    paths=frozenset({"img"}), split_paths=frozenset({"txt"}),
    required={"tokenizer": "the folder or vocab.txt that the txt_db was made with"},
    epilog="tagsds-pack uniter-lmdb --txt train=txt_db/itm_coco_train.db train=txt_db/itm_coco_restval.db "
    "dev=txt_db/itm_coco_val.db --img img_db/coco_train2014 img_db/coco_val2014 --tokenizer bert-base-cased-vocab.txt "
    "--out DIR. Here --tokenizer is needed: the one the txt_db was made with.",
)  # fmt: skip
