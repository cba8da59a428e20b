"""Hard negative sentences as text: what the encoder writes for a caption, why candidates were dropped, which words changed.

The same maskings, refills, filters and scores as in training (TAGS, arXiv 2111.03349), and three rules more: a sentence must read
back as the pieces that were scored, and thresholds hold its score, its number of changed words and its kind of edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.data.spans import SPAN_KINDS
from tagsds.data.vocabulary import Vocabulary
from tagsds.data.words import Spelling
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.models.uniter import UniterModel
from tagsds.negatives.attested import Attested
from tagsds.negatives.tailored import REASONS, drop_reasons
from tagsds.negatives.writer import SyntheticConfig, annotated, mask_captions, score_sentences, write_candidates
from tagsds.scoring.scorer import Scorer

OPTIONAL = ("true_of_image", "spelling")  # filters that can be left out
FILTERS = (*REASONS, "unattested", "spelling", "kind", "words", "score")  # in the order in which they are asked
SEVERAL, OTHER = "several", "other"
KINDS = (*SPAN_KINDS, SEVERAL, OTHER)


@dataclass(frozen=True)
class Rules:
    """Which candidates may become negatives. Scores are s(I, T) in 0..1.

    without      filters that are left out, of OPTIONAL
    kinds        kinds of edit that are kept; (): all
    most_words   most words that may be changed; None: any number
    min_score    lowest score
    max_score    highest score: above it a sentence is taken to be true of the image
    above_true   most by which it may exceed the score of the true caption; below zero: by how much it has to be lower; None: any
    attested     2 or 3: every run of so many word pieces in which a piece is changed occurs in captions of the corpus; 0: any
    """

    without: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    most_words: int | None = None
    min_score: float = 0.0
    max_score: float = 1.0
    above_true: float | None = None
    attested: int = 0


@dataclass(frozen=True)
class Change:
    """A word that was replaced: `old` at the characters [start, end) of the caption; kind as of an edit."""

    old: str
    new: str
    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Negative:
    """A false sentence of an image.

    text      the sentence
    score     s(I, T) of it, 0..1: the higher, the harder
    kind      object, attribute or relation where all changes are of one kind; "several"; "other" for words outside every span
    changes   the words that were replaced
    """

    text: str
    score: float
    kind: str
    changes: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values, the score to six places."""
        return asdict(self) | {"score": round(self.score, 6), "changes": [asdict(change) for change in self.changes]}


class Negatives(list[Negative]):
    """Negatives of one caption, the hardest first.

    caption   the caption they were written from
    score     s(I, T) of it, 0..1
    written   candidates in all
    dropped   {filter: the sentences that it dropped, in the order of writing}; the filters are FILTERS
    spare     how many more would have passed: `n` was reached
    """

    def __init__(self, found: Sequence[Negative], caption: str, score: float) -> None:
        super().__init__(found)
        self.caption, self.score = caption, score
        self.written = self.spare = 0
        self.dropped: dict[str, list[str]] = {name: [] for name in FILTERS}

    def keep(self, places: Sequence[int]) -> None:
        """Only those at these places; the others count as spare."""
        self.spare += len(self) - len(places)
        self[:] = [self[at] for at in places]


@dataclass(frozen=True)
class Sentence:
    """A caption of the bank for the writer. `kinds`: the kinds of the spans that hold each piece, a set a piece."""

    spelling: Spelling
    kinds: tuple[frozenset[str], ...]

    @staticmethod
    def of(spelling: Spelling, spans: Tensor, kind_of_span: Sequence[str]) -> Sentence:
        """`spans` int [*, 2], the bank's row: (span number, position with [CLS] counted)."""
        kinds: list[set[str]] = [set() for _ in spelling.pieces]
        for number, position in spans.tolist():
            if 1 <= position <= len(kinds) and number < len(kind_of_span):
                kinds[position - 1].add(kind_of_span[number])
        return Sentence(spelling, tuple(map(frozenset, kinds)))


@dataclass
class SentenceWriter:
    """Writes negatives for captions of a bank with the live encoder.

    config     maskings, refills, temperature, probability of masking
    rules      what is kept
    attested   the runs of pieces that `rules.attested` asks for; None where it asks for none
    """

    model: UniterModel
    scorer: Scorer
    tokenizer: Any
    config: SyntheticConfig = field(default_factory=SyntheticConfig)
    rules: Rules = field(default_factory=Rules)
    attested: Attested | None = None

    def __post_init__(self) -> None:
        if self.rules.attested and (self.attested is None or self.attested.n != self.rules.attested):
            raise UserError(f"attested is {self.rules.attested} and there is no corpus whose captions could be asked; set it to 0.")
        self.vocab = Vocabulary.of(self.tokenizer)

    @torch.no_grad()
    def write(self, bank: Bank, captions: Tensor, sentences: Sequence[Sentence], n: int, draw: Draw) -> list[Negatives]:
        """At most `n` negatives of each caption (int64 [B], numbers in the bank), whose spellings are `sentences`. The draws depend
        on `draw` and on the captions that are written for together."""
        maskings = mask_captions(bank, captions, self.config, self.vocab, draw.generator(bank.device, "mask"))
        candidates = write_candidates(self.model, bank, captions, maskings, self.config, self.vocab, draw)
        images = bank.image_of_caption[captions]
        reason = self.reasons(candidates, maskings.ids, annotated(bank, images, self.vocab))
        true = torch.sigmoid(score_sentences(self.scorer, bank, maskings.ids, maskings.lengths, images)).tolist()
        sheets, waiting = [], []
        for row, sentence in enumerate(sentences):
            sheet = Negatives([], sentence.spelling.text, true[row])
            length = int(maskings.lengths[row]) - 2
            rows = candidates[row, :, 1 : 1 + length].tolist()
            waiting += [(row, c, found) for c, found in self.sift(sheet, sentence, rows, reason[row].tolist())]
            sheets.append(sheet)
        if waiting:
            at = torch.tensor([entry[:2] for entry in waiting], device=bank.device)
            ids, lengths = candidates[at[:, 0], at[:, 1]], maskings.lengths[at[:, 0]]
            scores = torch.sigmoid(score_sentences(self.scorer, bank, ids, lengths, images[at[:, 0]])).tolist()
            for (owner, _, (text, kind, changes)), score in zip(waiting, scores, strict=True):
                self.admit(sheets[owner], Negative(text, score, kind, changes))
        for sheet in sheets:
            sheet.sort(key=lambda negative: (-negative.score, negative.text))
            sheet.spare = max(len(sheet) - n, 0)
            del sheet[n:]
        return sheets

    def reasons(self, candidates: Tensor, ids: Tensor, known: Tensor) -> Tensor:
        """As `drop_reasons` numbers them, and behind those "unattested": int64 [B, C]. `known`: the images' captions."""
        reason = drop_reasons(candidates, ids, known, self.vocab)
        if "true_of_image" in self.rules.without:
            reason[reason == 1 + REASONS.index("true_of_image")] = 0
        if self.attested is not None:
            reason[(reason == 0) & ~self.attested.holds(candidates, ids, self.vocab.pad)] = 1 + FILTERS.index("unattested")
        return reason

    def sift(
        self, sheet: Negatives, sentence: Sentence, rows: Sequence[Sequence[int]], reasons: Sequence[int]
    ) -> list[tuple[int, tuple[str, str, tuple[Change, ...]]]]:
        """The candidates (pieces without [CLS] and [SEP]) that pass all filters but the score: (number, (text, kind, changes))."""
        spelling = sentence.spelling
        spelled = [self.tokenizer.convert_ids_to_tokens(row) for row in rows]
        texts = [spelling.rewritten(pieces) for pieces in spelled]
        read_back = [ids[1:-1] for ids in self.tokenizer(texts)["input_ids"]]
        known, passed = {spelling.text}, []
        for c, (row, pieces, text, reason) in enumerate(zip(rows, spelled, texts, reasons, strict=True)):
            sheet.written += 1
            drop = FILTERS[reason - 1] if reason else None
            if drop is None and text in known:
                drop = "repeated"
            if drop is None and "spelling" not in self.rules.without and read_back[c] != list(row):
                drop = "spelling"
            changes = changes_of(sentence, pieces)
            kind = kind_of(changes)
            if drop is None and self.rules.kinds and kind not in self.rules.kinds:
                drop = "kind"
            if drop is None and self.rules.most_words is not None and len(changes) > self.rules.most_words:
                drop = "words"
            if drop is None:
                known.add(text)
                passed.append((c, (text, kind, changes)))
            else:
                sheet.dropped[drop].append(text)
        return passed

    def admit(self, sheet: Negatives, negative: Negative) -> None:
        """Add it to its sheet if its score lies within the thresholds."""
        rules = self.rules
        over = rules.above_true is not None and negative.score > sheet.score + rules.above_true
        if over or not rules.min_score <= negative.score <= rules.max_score:
            sheet.dropped["score"].append(negative.text)
        else:
            sheet.append(negative)


def changes_of(sentence: Sentence, pieces: Sequence[str]) -> tuple[Change, ...]:
    """The words of the caption that other pieces have replaced, in order."""
    spelling, changes = sentence.spelling, []
    for word in spelling.words():
        if any(pieces[at] != spelling.pieces[at] for at in word):
            start, end = spelling.chars(word)
            old, kinds = spelling.text[start:end], frozenset[str]().union(*(sentence.kinds[at] for at in word))
            new = "".join(pieces[at].removeprefix("##") if at == word[0] else f" {pieces[at]}" for at in word).replace(" ##", "")
            changes.append(Change(old, new, start, end, one_kind(kinds)))
    return tuple(changes)


def one_kind(kinds: frozenset[str]) -> str:
    """Of the spans that hold a word."""
    return SEVERAL if len(kinds) > 1 else next(iter(kinds), OTHER)


def kind_of(changes: Sequence[Change]) -> str:
    """Of an edit: the one kind of its changes; words outside every span count only where nothing else changed."""
    kinds = frozenset(change.kind for change in changes)
    return one_kind(kinds - {OTHER})


def check_writes(model: Any, folder: object) -> None:
    """UserError where no stage has trained the masked-word head."""
    trained = model.config.trained_heads
    if "mlm" not in trained:
        raise UserError(
            f"{folder} has no trained masked-word head (trained_heads: {', '.join(trained) or 'none'}), so it cannot write; "
            "train it with a TAGS recipe, or pre-train it with mlm."
        )
