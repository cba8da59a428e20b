"""The answers: what a page or a program asks of the models and of the corpus. Of HTTP it knows the statuses of what is refused."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from tagsds.api import Change, Hit, Negatives, Retriever, Rules
from tagsds.errors import UserError
from tagsds.negatives.sentences import FILTERS
from tagsds.provenance import version
from tagsds.serve import answers
from tagsds.serve.album import Album
from tagsds.serve.limits import Limits
from tagsds.serve.worker import Job, RefusedError

BLOCK = 512  # images or captions that the encoder reads between two looks at the clock
MOST_DROPPED = 100  # sentences of a filter that are shown
WHY = {
    "annotated": "the corpus has it as a caption of the image",
    "repeated": "it was written before",
    "true_of_image": "all its new words occur in captions of the image, so it may be true",
    "unattested": "a changed run of words occurs in no caption of the corpus",
    "spelling": "it does not read back as the word pieces that were scored",
    "kind": "another kind of edit than those asked for",
    "words": "more words were changed than asked for",
    "score": "its score lies outside the range asked for",
}


class Desk:
    """`encoder` and `matcher` share the corpus. The methods that take a `job` use the models: one at a time. The others may be
    called from several threads."""

    def __init__(self, encoder: Retriever, matcher: Retriever | None, split: str, pictures: Path | None, limits: Limits) -> None:
        if encoder.gallery.manifest is None or encoder.gallery.bank is None:
            raise UserError(f"{encoder.folder} was loaded without a corpus; give the folder of packed shards.")
        self.encoder, self.matcher, self.split, self.limits = encoder, matcher, split, limits
        self.bank, self.manifest = encoder.gallery.bank, encoder.gallery.manifest
        self.album = Album(self.manifest, split, self.bank.keys, pictures, limits.cache_mib)

    def warm(self) -> None:
        """Let a matcher encode the corpus, which its first search would wait for."""
        for retriever in (self.encoder, self.matcher):
            if retriever is not None and retriever.encodings is not None:
                retriever.search("a", 1, by="sentence")
                retriever.search(self.bank.keys[0], 1, by="image")

    # --- the corpus ---------------------------------------------------------------------------------------------------

    def row(self, key: str) -> int:
        """Number of an image. RefusedError with 404 where there is none."""
        try:
            return self.encoder.gallery.row(key)
        except (UserError, ValueError) as error:
            raise RefusedError(404, f"image '{key[:80]}' is not in split '{self.split}'; choose one of the corpus.") from error

    def boxes(self, row: int) -> Tensor:
        """float32 [n, 4] on the CPU, in the order in which the models have the regions."""
        offsets = self.bank.regions.offsets
        return self.bank.boxes[int(offsets[row]) : int(offsets[row + 1])].cpu()

    def alt(self, row: int) -> str:
        return self.album.alt(row, int(self.bank.regions.lengths[row]))

    def regions(self, row: int) -> list[answers.Region]:
        boxes = self.boxes(row).tolist()
        return [answers.Region(box=box, name=name) for box, name in zip(boxes, self.album.names(row, len(boxes)), strict=True)]

    def captions(self, row: int) -> list[str]:
        return [self.bank.texts[int(number)] for number in self.bank.captions_of_image[row]]

    def image(self, key: str) -> answers.Image:
        row, keys = self.row(key), self.bank.keys
        return answers.Image(
            key=keys[row], alt=self.alt(row), captions=self.captions(row), regions=self.regions(row),
            drawn=self.album.picture(row, self.boxes(row)).drawn,
            previous=keys[row - 1] if row else None, next=keys[row + 1] if row + 1 < len(keys) else None,
        )  # fmt: skip

    def page(self, start: int, count: int, contains: str) -> answers.Page:
        """Images whose key contains a text, a part of them."""
        keys = self.bank.keys
        rows: Sequence[int] = range(len(keys))
        if contains:
            rows = [row for row in rows if contains.lower() in keys[row].lower()]
        images = [answers.Listed(key=keys[row], alt=self.alt(row)) for row in rows[start : start + count]]
        return answers.Page(total=len(rows), start=start, images=images)

    def about(self) -> answers.About:
        model, config = self.encoder.model, self.encoder.model.config
        pairs = model.scored_by == "pairs"
        heads = config.trained_heads if pairs else ()
        return answers.About(
            model=model_of(self.encoder), matcher=model_of(self.matcher) if self.matcher else None,
            shortlist=self.limits.shortlist, corpus=self.manifest.folder.resolve().name, split=self.split,
            images=self.bank.num_images, captions=self.bank.num_captions, proofreads="discriminate" in heads,
            corrects="correct" in heads, writes="mlm" in heads, aligns=pairs, version=version(),
        )  # fmt: skip

    # --- the models ---------------------------------------------------------------------------------------------------

    def find_images(self, asked: answers.FindImages, job: Job) -> answers.ImagesFound:
        found, ranks, stages = self._search(asked.sentence, asked.k, "sentence", job)
        hits = [
            answers.ImageHit(key=hit.key, score=hit.score, matcher_rank=ranks.get(hit.number), alt=self.alt(hit.number))
            for hit in found
        ]
        return answers.ImagesFound(hits=hits, stages=stages, waited_ms=1000 * job.waited)

    def find_sentences(self, asked: answers.FindSentences, job: Job) -> answers.SentencesFound:
        key = self.bank.keys[self.row(asked.image)]
        found, ranks, stages = self._search(key, asked.k, "image", job)
        hits = [
            answers.SentenceHit(
                sentence=hit.caption or "", key=hit.key, score=hit.score, matcher_rank=ranks.get(hit.number), own=hit.key == key
            )
            for hit in found
        ]
        return answers.SentencesFound(hits=hits, stages=stages, waited_ms=1000 * job.waited)

    def _search(
        self, query: str, k: int, by: Literal["sentence", "image"], job: Job
    ) -> tuple[list[Hit], dict[int, int], list[answers.Stage]]:
        """Hits, places in the matcher's list from 1 by number, and what each stage took."""
        total = self.bank.num_images if by == "sentence" else self.bank.num_captions
        stages, ranks, numbers = [], {}, list(range(total))
        if self.matcher is not None:
            begin = time.perf_counter()
            first = self.matcher.search(query, max(self.limits.shortlist, k), by=by)
            stages.append(stage("matcher", self.matcher, total, begin))
            numbers = [hit.number for hit in first]
            ranks = {number: place for place, number in enumerate(numbers, 1)}
        begin = time.perf_counter()
        if self.encoder.encodings is not None:  # a matcher in the encoder's place
            found = self.encoder.search(query, k, by=by, among=numbers)
        else:
            parts = []
            for start in range(0, len(numbers), BLOCK):
                job.check()
                parts.append(self.encoder.search(query, k, by=by, among=numbers[start : start + BLOCK]))
            found = list(heapq.merge(*parts, key=lambda hit: -hit.score))[:k]
        stages.append(stage("encoder" if self.encoder.encodings is None else "matcher", self.encoder, len(numbers), begin))
        return found, ranks, stages

    def proofread(self, asked: answers.Held, job: Job) -> answers.Proofread:
        key, begin = self.bank.keys[self.row(asked.image)], time.perf_counter()
        words = self.encoder.proofread(key, asked.sentence)
        score = float(self.encoder.score(key, asked.sentence))
        return answers.Proofread(
            words=[answers.SuspectedWord(**vars(word)) for word in words], score=score, milliseconds=since(begin)
        )

    def align(self, asked: answers.Held, job: Job) -> answers.Aligned:
        row, begin, end = self.row(asked.image), time.perf_counter(), 0
        words = []
        for text, weights in self.encoder.align(self.bank.keys[row], asked.sentence):
            start = asked.sentence.index(text, end)
            end = start + len(text)
            words.append(answers.AlignedWord(text=text, start=start, end=end, weights=weights.tolist()))
        return answers.Aligned(words=words, regions=self.regions(row), milliseconds=since(begin))

    def write(self, asked: answers.Write, job: Job) -> answers.Written:
        key, begin = self.bank.keys[self.row(asked.image)], time.perf_counter()
        rules = Rules(tuple(asked.without), tuple(asked.kinds), asked.most_words, max_score=asked.max_score)
        found = self.encoder.write_negatives(key, asked.sentence, asked.n, rules=rules, seed=asked.seed)
        negatives = [answers.Negative(**negative.as_json(), marks=marks_of(negative.text, negative.changes)) for negative in found]
        return answers.Written(
            caption=found.caption, score=found.score, written=found.written, spare=found.spare, negatives=negatives,
            dropped=dropped_of(found), milliseconds=since(begin),
        )  # fmt: skip


def model_of(retriever: Retriever) -> answers.Model:
    """By the name of the run: the folder above an export."""
    folder = retriever.folder.resolve()
    named = folder.parent if folder.name.startswith("export") else folder
    return answers.Model(name=named.name, kind=str(retriever.model.config.model_type))


def since(begin: float) -> float:
    return 1000 * (time.perf_counter() - begin)


def stage(name: str, retriever: Retriever, scored: int, begin: float) -> answers.Stage:
    return answers.Stage(name=name, model=model_of(retriever).name, scored=scored, milliseconds=since(begin))


def dropped_of(found: Negatives) -> list[answers.Dropped]:
    """What each filter dropped, filters that dropped nothing left out."""
    return [
        answers.Dropped(
            filter=name, why=WHY.get(name, name), count=len(found.dropped[name]),
            sentences=list(dict.fromkeys(found.dropped[name]))[:MOST_DROPPED],
        )
        for name in FILTERS
        if found.dropped[name]
    ]  # fmt: skip


def marks_of(text: str, changes: Sequence[Change]) -> list[list[int]]:
    """Where the new words of a negative stand in it, as characters [start, end)."""
    marks, shift, end = [], 0, 0
    low = text.lower()
    for change in changes:
        new = change.new.lower()
        at = change.start + shift
        if at < end or low[at : at + len(new)] != new:
            at = low.find(new, end)
        if at >= 0:
            end = at + len(new)
            shift = end - change.end
            marks.append([at, end])
    return marks
