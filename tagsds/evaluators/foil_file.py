"""Captions that are right or have a wrong word, in FOIL-COCO's layout (Shekhar et al., ACL 2017, arXiv 1705.01359) or SugarCrepe's.

    {"images": [{"id": 391895, "file_name": "COCO_val2014_000000391895.jpg"}, ...],
     "annotations": [{"image_id": 391895, "caption": "...", "foil": true, "target_word": "bicycle", "foil_word": "motorcycle"},
                     ...]}

Captions with "foil": false are right; their words are "ORIG" in the published files and are not read. `images` may be absent. A
file in SugarCrepe's layout gives two captions a pair: what differs word by word is what was replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from tagsds.errors import UserError
from tagsds.evaluators.pairs_file import KeyIndex, check_found, read_file
from tagsds.files import read_json
from tagsds.formats.shape import Any as AnyValue
from tagsds.formats.shape import Of, problem

WORDS = {"target_word?": AnyValue, "foil_word?": AnyValue}
ANNOTATION = {"image_id": (Of(int), Of(str)), "caption": Of(str), "foil": Of(bool), **WORDS}
IMAGE = {"id": (Of(int), Of(str)), "file_name?": Of(str)}
TOKEN = re.compile(r"\w+(?:[-'’]\w+)*")


@dataclass(frozen=True)
class Checked:
    """A caption to proofread. `image`: row of the split's keys; `wrong`: characters [a, b) of what was replaced, none where the
    caption is right; `should_be`: what stood there, None where that is not one stretch of words."""

    image: int
    text: str
    wrong: tuple[tuple[int, int], ...] = ()
    should_be: str | None = None


@dataclass(frozen=True)
class CheckedSet:
    """The captions of a file; `skipped` name images outside the split, or a pair whose words do not differ."""

    name: str
    file: Path
    captions: list[Checked]
    skipped: int


def read_checked(paths: Iterable[Path], keys: Sequence[str], skip_missing: bool) -> list[CheckedSet]:
    """Every file, its images found among the split's keys. UserError for a bad file, or for images outside the split."""
    index = KeyIndex(keys)
    return [read_one(path, index, skip_missing) for path in paths]


def read_one(path: Path, index: KeyIndex, skip_missing: bool) -> CheckedSet:
    """One file, of either layout."""
    content = read_json(path, "give a file in FOIL-COCO's or SugarCrepe's layout")
    if not (isinstance(content, dict) and "annotations" in content):
        pairs = read_file(path, index, skip_missing)
        found = [caption for pair in pairs.pairs for caption in of_pair(pair.image, pair.caption, pair.negative)]
        return CheckedSet(path.stem, path, found, pairs.skipped + len(pairs.pairs) - len(found) // 2)
    if fault := problem(content, {"annotations": [ANNOTATION], "images?": [IMAGE]}):
        raise UserError(f"{path} is not in FOIL-COCO's layout ({fault}); give a file in that layout, or in SugarCrepe's.")
    names = {image["id"]: image.get("file_name", str(image["id"])) for image in content.get("images", [])}
    captions, missing = [], []
    for number, entry in enumerate(content["annotations"]):
        name = names.get(entry["image_id"], str(entry["image_id"]))
        row = index.find(name)
        if row is None:
            row = index.find(str(entry["image_id"]))
        if row is None:
            missing.append(name)
        else:
            captions.append(of_annotation(row, entry, f"{path}: annotation {number}"))
    check_found(path, missing, len(captions), "caption", skip_missing)
    return CheckedSet(path.stem, path, captions, len(missing))


def of_annotation(row: int, entry: dict[str, Any], where: str) -> Checked:
    """A caption of FOIL-COCO. UserError where the foil word does not stand in its caption."""
    if not entry["foil"]:
        return Checked(row, entry["caption"])
    target, foil = entry.get("target_word"), entry.get("foil_word")
    if not isinstance(target, str) or not isinstance(foil, str) or not foil.strip():
        raise UserError(f"{where} is a foil without target_word and foil_word; give a file in FOIL-COCO's layout.")
    pattern = r"\s+".join(map(re.escape, foil.split()))
    found = [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", entry["caption"], re.IGNORECASE)]
    if not found:  # a plural, or a word with something behind it
        found = [match.span() for match in re.finditer(rf"(?<!\w){pattern}\w*", entry["caption"], re.IGNORECASE)]
    if not found:
        raise UserError(f"{where}: its foil_word '{foil[:60]}' is not in its caption; correct the file.")
    return Checked(row, entry["caption"], tuple(found), target if len(found) == 1 else None)


def of_pair(image: int, caption: str, negative: str) -> list[Checked]:
    """The right and the wrong caption of a pair; none where no word of the wrong one is new (words were only left out)."""
    old = [match.span() for match in TOKEN.finditer(caption)]
    new = [match.span() for match in TOKEN.finditer(negative)]
    matcher = SequenceMatcher(None, [caption[a:b].lower() for a, b in old], [negative[a:b].lower() for a, b in new], autojunk=False)
    changed = [(i1, i2, j1, j2) for op, i1, i2, j1, j2 in matcher.get_opcodes() if op in ("replace", "insert")]
    if not changed:
        return []
    wrong = tuple((new[j1][0], new[j2 - 1][1]) for _, _, j1, j2 in changed)
    i1, i2 = changed[0][:2]
    should_be = caption[old[i1][0] : old[i2 - 1][1]] if len(changed) == 1 and i2 > i1 else None
    return [Checked(image, caption), Checked(image, negative, wrong, should_be)]
