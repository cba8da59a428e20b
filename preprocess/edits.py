"""Edited captions of a packed split, by rules: what to tune on, so that a benchmark's own files are for the table alone.

    tagsds-edit --data SHARDS --split dev --output FOLDER [--number 1000] [--seed 1]

One file a kind in SugarCrepe's layout (tagsds/evaluators/pairs_file.py), for `tagsds-evaluate --pairs FOLDER`:

    replace_obj, replace_att, replace_rel   a span becomes another of its kind that a training caption has
    add_obj, add_att                        "with a <object>" after an object; an attribute before an object that has none
    swap_obj, swap_att                      two spans of a caption change places

A span is an object, an attribute or a relation of the corpus (`tagsds/data/spans.py`, or the parse it was packed with). What
comes in is drawn by its frequency in the training captions and stands in none of the image's own captions, word by word; it
has the form of what goes out (number of a noun, -ing of a verb). It may still be true of the image: these pairs are as clean as
five captions can make them.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from preprocess.records import numpy_seed
from tagsds.data import span_words as lists
from tagsds.data.samples import captions_of
from tagsds.data.shard_files import check_shard, places_of_members
from tagsds.data.spans import SPAN_KINDS, find_spans
from tagsds.errors import check_whole, command
from tagsds.files import write_json
from tagsds.formats.manifest import Manifest, read_manifest

TRIES = 20  # draws of a span to put in, before a caption is left
LEAST_COUNT = 3  # a span that fewer training captions have is a slip of the tagger as often as not
WORD = re.compile(r"[a-z0-9']+")
SILENT = frozenset("a an the of in on at to with and or is are it its his her their".split())  # true of any image


@dataclass(frozen=True)
class Part:
    """A span of a caption: kind, and its characters [start, end)."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Caption:
    """`said`: the words of all captions of its image, which no edit may bring in."""

    key: str
    text: str
    parts: tuple[Part, ...]
    said: frozenset[str]

    def words_of(self, part: Part) -> str:
        return self.text[part.start : part.end].lower()

    def with_parts(self, *changes: tuple[Part, str]) -> str:
        """The text with other words in some parts, its articles in agreement with what follows them."""
        text = self.text
        for part, words in sorted(changes, key=lambda change: -change[0].start):
            before, after = text[: part.start], text[part.end :]
            capital = text[part.start : part.start + 1].isupper()
            words = words[:1].upper() + words[1:] if capital else words
            text = with_article(before, words) + words + after
        return text

    def of_kind(self, kind: str) -> list[Part]:
        return [part for part in self.parts if part.kind == kind]


def with_article(before: str, words: str) -> str:
    """`before` with "a" or "an" at its end as `words` ask for."""
    article = re.search(r"\b([Aa])n?( +)$", before)
    if article is None:
        return before
    return before[: article.start()] + article[1] + ("n" if words[:1].lower() in "aeiou" else "") + article[2]


def form(kind: str, words: str) -> tuple[bool, ...]:
    """What a span has to share with the one in whose place it comes, so that the sentence stays one: an object the number, an
    attribute whether it counts, a relation whether it begins with an -ing form or a preposition and whether it ends with one."""
    first, last = words.split()[0], words.split()[-1]
    if kind == "object":
        return (words in lists.PLURAL_PEOPLE or (words.endswith("s") and not words.endswith(("ss", "us", "is"))),)
    if kind == "attribute":
        return (words in lists.NUMBERS | lists.QUANTITY_NOUNS,)
    return (first.endswith("ing"), first in lists.PREPOSITIONS, last in lists.PREPOSITIONS)


class Stock:
    """Spans of the training captions with their counts, for drawing."""

    def __init__(self, captions: Sequence[Caption]) -> None:
        counts = {kind: Counter(c.words_of(part) for c in captions for part in c.of_kind(kind)) for kind in SPAN_KINDS}
        self.words = {kind: sorted(words for words, n in counts[kind].items() if n >= LEAST_COUNT) for kind in SPAN_KINDS}
        self.chances: dict[str, np.ndarray] = {}
        for kind, words in self.words.items():
            weights = np.array([counts[kind][word] for word in words], dtype=np.float64)
            self.chances[kind] = weights / weights.sum() if len(words) else weights

    def draw(self, kind: str, caption: Caption, rng: np.random.Generator, like: str | None = None) -> str | None:
        """A span none of whose words the image's captions have, and of the form of `like`; None where TRIES draws find none."""
        if not self.words[kind]:
            return None
        for number in rng.choice(len(self.words[kind]), size=TRIES, p=self.chances[kind]):
            words = self.words[kind][number]
            content = set(WORD.findall(words)) - SILENT
            new = not set(WORD.findall(words)) & caption.said if kind == "relation" else content and not content & caption.said
            if new and (like is None or form(kind, words) == form(kind, like)):
                return words
        return None


def replaced(kind: str) -> Callable[[Caption, Stock, np.random.Generator], str | None]:
    """The edit that puts another span in the place of one of `kind`."""

    def edit(caption: Caption, stock: Stock, rng: np.random.Generator) -> str | None:
        if not (parts := caption.of_kind(kind)):
            return None
        part = parts[rng.integers(len(parts))]
        words = stock.draw(kind, caption, rng, caption.words_of(part))
        return None if words is None else caption.with_parts((part, words))

    return edit


def with_object(caption: Caption, stock: Stock, rng: np.random.Generator) -> str | None:
    """ "a dog on a bed" -> "a dog with a ball on a bed"."""
    if not (parts := caption.of_kind("object")):
        return None
    part = parts[rng.integers(len(parts))]
    words = stock.draw("object", caption, rng)
    if words is None:
        return None
    article = "" if form("object", words)[0] else with_article("a ", words)
    return f"{caption.text[: part.end]} with {article}{words}{caption.text[part.end :]}"


def with_attribute(caption: Caption, stock: Stock, rng: np.random.Generator) -> str | None:
    """ "a dog" -> "a white dog", before an object without an attribute."""
    taken = {part.end for part in caption.of_kind("attribute")}
    free = [part for part in caption.of_kind("object") if not any(end in taken for end in (part.start - 1, part.start))]
    if not free:
        return None
    part = free[rng.integers(len(free))]
    words = stock.draw("attribute", caption, rng)
    return None if words is None else caption.with_parts((part, f"{words} {caption.words_of(part)}"))


def swapped(kind: str) -> Callable[[Caption, Stock, np.random.Generator], str | None]:
    """The edit that exchanges two different spans of `kind`."""

    def edit(caption: Caption, stock: Stock, rng: np.random.Generator) -> str | None:
        parts = caption.of_kind(kind)
        named = [(part, caption.words_of(part)) for part in parts]
        pairs = [
            (one, other)
            for i, (one, words) in enumerate(named)
            for other, others in named[i + 1 :]
            if words != others and form(kind, words) == form(kind, others)
        ]
        if not pairs:
            return None
        one, other = pairs[rng.integers(len(pairs))]
        return caption.with_parts((one, caption.words_of(other)), (other, caption.words_of(one)))

    return edit


EDITS: dict[str, Callable[[Caption, Stock, np.random.Generator], str | None]] = {
    "replace_obj": replaced("object"), "replace_att": replaced("attribute"), "replace_rel": replaced("relation"),
    "add_obj": with_object, "add_att": with_attribute, "swap_obj": swapped("object"), "swap_att": swapped("attribute"),
}  # fmt: skip


def read_captions(manifest: Manifest, split: str) -> Iterator[Caption]:
    """The captions of a split with their spans. Only captions.json is read of a sample: features are most of a shard's bytes.
    UserError for an unknown split or a damaged shard."""
    for shard in tqdm(manifest.shards(split), desc=split, unit="shard"):
        path = check_shard(manifest.folder, shard, checksum=False)
        places = places_of_members(path)
        with path.open("rb") as stream:
            for key, members in places.items():
                sample = {}
                if "captions.json" in members:
                    start, size = members["captions.json"]
                    stream.seek(start)
                    sample["captions.json"] = stream.read(size)
                yield from captions_of_image(key, captions_of(sample, f"{path}: {key}", manifest.vocab_size))


def captions_of_image(key: str, found: Sequence[dict[str, Any]]) -> Iterator[Caption]:
    """Captions of an image from the entries of its captions.json. A span in several parts is left out."""
    said = frozenset(word for caption in found for word in WORD.findall(caption["text"].lower()))
    for caption in found:
        text = caption["text"].rstrip()
        spans = caption.get("spans") or [span.as_json() for span in find_spans(text)]
        whole = [(span["kind"], *span["chars"][0]) for span in spans if len(span.get("chars", [])) == 1]
        yield Caption(key, text, tuple(Part(*one) for one in whole if one[2] <= len(text)), said)


def make_edits(kind: str, captions: Sequence[Caption], stock: Stock, number: int, seed: int) -> list[dict[str, str]]:
    """Up to `number` pairs of a kind, at most one a caption, of captions in a random order."""
    rng = np.random.Generator(np.random.PCG64(numpy_seed("edits", seed, kind)))
    rows: list[dict[str, str]] = []
    for at in rng.permutation(len(captions)):
        if len(rows) == number:
            break
        caption = captions[at]
        edited = EDITS[kind](caption, stock, rng)
        if edited is not None and edited.lower() != caption.text.lower():
            rows.append({"filename": caption.key, "caption": caption.text, "negative_caption": edited})
    return rows


def run(options: argparse.Namespace) -> None:
    manifest = read_manifest(options.data)
    stock = Stock(list(read_captions(manifest, options.train_split)))
    captions = list(read_captions(manifest, options.split))
    for kind in EDITS:
        rows = make_edits(kind, captions, stock, options.number, options.seed)
        if not rows:
            print(f"{kind}: no caption of the split has what it takes; no file")
            continue
        write_json(options.output / f"{kind}.json", {str(i): row for i, row in enumerate(rows)})
        print(f"{kind}: {len(rows)} pairs, such as\n    {rows[0]['caption']}\n    {rows[0]['negative_caption']}")
    print(f"written: {options.output}; score them with tagsds-evaluate --split {options.split} --pairs {options.output}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tagsds-edit", description="Edited captions of a packed split, by rules.")
    parser.add_argument("--data", type=Path, required=True, help="folder of packed shards")
    parser.add_argument("--split", default="dev", help="whose captions are edited (dev)")
    parser.add_argument("--train-split", default="train", metavar="SPLIT", help="whose words come in (train)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a JSON file for each kind of edit")
    parser.add_argument("--number", type=int, default=1000, metavar="N", help="most pairs of a kind (1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (1)")
    options = parser.parse_args(arguments)
    check_whole(options, "number")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    command(lambda: run(parse_arguments(arguments)))()


if __name__ == "__main__":
    main()
