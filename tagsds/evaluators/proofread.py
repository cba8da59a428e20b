"""Proofreading in the protocol of FOIL-COCO (Shekhar et al., ACL 2017, arXiv 1705.01359): is a caption wrong, which word, what
should it be; by the discrimination and correction heads, beside what can be had without looking.

A word's suspicion is the probability that it was replaced, a caption's that of its most suspicious word; beside it stands the
caption's ranking score, the lower the more suspicious, which names no word. Thresholds are set on the same captions, so that at
most 5 % of what is right is called wrong.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tagsds.data.pairs import Pairs
from tagsds.data.vocabulary import Vocabulary
from tagsds.data.words import Spelling, sentence_table
from tagsds.errors import UserError
from tagsds.evaluators.console import text_table
from tagsds.evaluators.foil_file import Checked, CheckedSet, read_checked
from tagsds.evaluators.pairs_file import list_files
from tagsds.evaluators.protocol import Cost, Evaluator, Plan, Subject
from tagsds.evaluators.section import Cell, Row, Section, Table
from tagsds.models.load import positions_of_model
from tagsds.scoring.likelihood import hidden_words
from tagsds.scoring.proofread import check_proofreads, proofread
from tagsds.scoring.scorer import clock

FALSE_ALARMS = 0.05
BLOCK = 64  # captions of a forward
NAME = "proofread"
METHODS = {
    "heads": "the encoder's heads", "score": "low score of the caption", "surprise": "most surprising word, words alone",
    "random": "a random word",
}  # fmt: skip
OF_WORDS = ("which", "mended", "words_found", "word_threshold")  # figures that a score of the caption has not
COLUMNS = {
    "accuracy": "captions told right", "found": "wrong captions found", "false_alarms": "right ones called wrong",
    "which": "which word", "mended": "what it should be", "words_found": "wrong words found",
}  # fmt: skip
INTRO = (
    "Captions that are right and captions with a replaced word, as in FOIL-COCO: is the caption wrong, which word is it (of wrong "
    "captions), what should it be (of wrong words). Thresholds are set so that at most 5 % of right captions, and of right words, "
    "are called wrong. A low ranking score tells of a caption and of no word. The words alone: the most surprising word of the "
    "encoder's masked-word head without any region."
)


@dataclass(frozen=True)
class ProofreadSettings:
    """files: JSON files in FOIL-COCO's or SugarCrepe's layout, or folders of them.
    skip_missing: leave out captions whose image is not in the split, else they are an error."""

    files: tuple[Path, ...]
    skip_missing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(Path(file) for file in self.files))


@dataclass
class Marks:
    """What one method says of a caption, word by word: `doubt` (higher = more probably wrong) and `fix` (what it should be);
    `wrong`: whether the word was replaced."""

    doubt: list[float]
    fix: list[str | None]
    wrong: list[bool]
    should_be: str | None


class Proofread(Evaluator):
    """`proofread` of the results file. Any image of the bank may be meant, whether it is ranked or not."""

    name = NAME
    Settings = ProofreadSettings
    ranks = False
    needs_matrix = False
    any_image = True

    def __init__(self, settings: ProofreadSettings) -> None:
        super().__init__(settings)
        self.sets: list[CheckedSet] = []

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--proofread", type=Path, nargs="+", default=[], metavar="FILE", help="captions with wrong words, JSON")

    @classmethod
    def implied_by(cls, options: argparse.Namespace) -> bool:
        return bool(options.proofread)

    @classmethod
    def settings_of(cls, options: argparse.Namespace) -> dict[str, Any]:
        return {"files": options.proofread, "skip_missing": options.skip_missing_pairs} if options.proofread else {}

    def check(self, plan: Plan) -> None:
        if plan.model.scored_by != "pairs":
            raise UserError(f"evaluator '{NAME}' needs the pair encoder's heads and this is {plan.model.kind}; give an encoder.")
        for file in list_files(self.settings.files, "--proofread"):
            plan.manifest.check_edits(file)

    def prepare(self, subject: Subject) -> None:
        check_proofreads(subject.model, "the checkpoint")
        files = list_files(self.settings.files, "--proofread")
        self.sets = read_checked(files, subject.bank.keys, self.settings.skip_missing)
        positions = positions_of_model(subject.model.config)
        for captions in (found.captions for found in self.sets):
            texts = [caption.text for caption in captions]
            table = sentence_table(subject.tokenizer, texts, positions, " of --proofread", "remove it")
            if int(table.lengths.min()) < 3:
                raise UserError("a caption of --proofread is empty; remove it.")

    def score(self, subject: Subject) -> None:
        for found in self.sets:
            started = clock(subject.bank.device)
            numbers = subject.world.share(torch.arange(len(found.captions))).tolist()
            mine = {n: marks for n, marks in zip(numbers, self.marks(subject, [found.captions[n] for n in numbers]), strict=True)}
            every = {n: marks for part in subject.world.gather_objects(mine) for n, marks in part.items()}
            subject.costs[f"{NAME}/{found.name}"] = Cost(len(found.captions), clock(subject.bank.device) - started)
            if subject.world.is_main:
                subject.kept[f"{NAME}/{found.name}"] = [every[n] for n in range(len(found.captions))]

    def marks(self, subject: Subject, captions: Sequence[Checked]) -> list[dict[str, Marks]]:
        """{method: its marks} of each caption, in order."""
        marked: list[dict[str, Marks]] = []
        for start in range(0, len(captions), BLOCK):
            block = captions[start : start + BLOCK]
            spelled = [Spelling.of(subject.tokenizer, caption.text) for caption in block]
            images = torch.tensor([caption.image for caption in block], device=subject.bank.device)
            rows, image_of_caption = torch.unique(images, return_inverse=True)
            table = subject.bank.image_table(rows)
            read = proofread(subject.model, subject.tokenizer, spelled, table, image_of_caption)  # type: ignore[arg-type]
            blind = surprises(subject, spelled)
            texts = sentence_table(subject.tokenizer, [caption.text for caption in block], None).to(images.device)
            every = torch.arange(len(block), device=images.device)
            scores = subject.pair_scorer(Pairs(texts, table, every, image_of_caption)).tolist()
            for caption, spelling, words, (surprise, guess), score in zip(block, spelled, read, blind, scores, strict=True):
                places = [spelling.chars(word) for word in spelling.words()]
                wrong = [any(a < end and b > begin for begin, end in caption.wrong) for a, b in places]
                heads = Marks([w.suspicion for w in words], [w.suggestion for w in words], wrong, caption.should_be)
                low = Marks([-score] * len(words), [None] * len(words), wrong, caption.should_be)
                marked.append({"heads": heads, "score": low, "surprise": Marks(surprise, guess, wrong, caption.should_be)})
        return marked

    def figures(self, subject: Subject) -> dict[str, Any]:
        return {NAME: {found.name: figures_of(subject.kept[f"{NAME}/{found.name}"], found.skipped) for found in self.sets}}

    def sources(self) -> dict[str, Any]:
        return {NAME: [str(found.file) for found in self.sets]}

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> str | None:
        tables = [
            text_table([f"proofreading {name}, %", *COLUMNS.values()],
                       [[METHODS[method], *(shown(row[key]) for key in COLUMNS)] for method, row in entry["methods"].items()])
            for name, entry in results.get(NAME, {}).items()
        ]  # fmt: skip
        return "\n\n".join(tables) or None

    @classmethod
    def section(cls, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section | None:
        tables: list[Any] = []
        for run, results in runs.items():
            for name, entry in ((n, e) for result in results for n, e in result.get(NAME, {}).items()):
                rows = [
                    Row(METHODS[method], [Cell(shown(row[key])) for key in COLUMNS], chance=method == "random")
                    for method, row in entry["methods"].items()
                ]
                note = f"{entry['wrong']} wrong and {entry['right']} right captions"
                tables.append(Table(f"{run}: {name}", "method", list(COLUMNS.values()), rows, note=note, run=run))
        return Section(NAME, tables, "Proofreading", INTRO) if tables else None


def surprises(subject: Subject, sentences: Sequence[Spelling]) -> list[tuple[list[float], list[str | None]]]:
    """Of each sentence, word by word: minus the log probability of the word, whole behind [MASK] and without any region, and the
    likeliest pieces in its place."""
    tokenizer = subject.tokenizer
    table = sentence_table(tokenizer, [sentence.text for sentence in sentences], None).to(subject.bank.device)
    words = [(row, [1 + at for at in word]) for row, sentence in enumerate(sentences) for word in sentence.words()]
    chances, best = hidden_words(subject.model, table, words, Vocabulary.of(tokenizer))  # type: ignore[arg-type]
    log_p, pieces = chances.tolist(), tokenizer.convert_ids_to_tokens(best.tolist())
    found: list[tuple[list[float], list[str | None]]] = [([], []) for _ in sentences]
    at = 0
    for row, positions in words:
        end = at + len(positions)
        found[row][0].append(-sum(log_p[at:end]))
        found[row][1].append("".join(piece.removeprefix("##") for piece in pieces[at:end]))
        at = end
    return found


def figures_of(marks: Sequence[Mapping[str, Marks]], skipped: int) -> dict[str, Any]:
    """All figures of a file, per cent, None where there is nothing to count."""
    wrong = sum(any(one["heads"].wrong) for one in marks)
    methods = {name: judged([one[name] for one in marks]) for name in ("heads", "score", "surprise")}
    methods["score"] |= dict.fromkeys(OF_WORDS)
    return {
        "right": len(marks) - wrong, "wrong": wrong, "skipped": skipped,
        "methods": methods | {"random": by_chance([one["heads"] for one in marks])},
    }  # fmt: skip


def judged(marks: Sequence[Marks]) -> dict[str, float | None]:
    """The figures of COLUMNS, and both thresholds."""
    right, foils = [m for m in marks if not any(m.wrong)], [m for m in marks if any(m.wrong)]
    limit = threshold([max(m.doubt) for m in right])
    found = sum(max(m.doubt) > limit for m in foils)
    alarms = sum(max(m.doubt) > limit for m in right)
    kept = [doubt for m in marks for doubt, bad in zip(m.doubt, m.wrong, strict=True) if not bad]
    replaced = [doubt for m in foils for doubt, bad in zip(m.doubt, m.wrong, strict=True) if bad]
    word_limit = threshold(kept)
    known = [m for m in foils if m.should_be is not None]
    return {
        "accuracy": percent(found + len(right) - alarms, len(marks)),
        "found": percent(found, len(foils)),
        "false_alarms": percent(alarms, len(right)),
        "which": percent(sum(m.wrong[most(m.doubt)] for m in foils), len(foils)),
        "mended": percent(sum(mends(m) for m in known), len(known)),
        "words_found": percent(sum(doubt > word_limit for doubt in replaced), len(replaced)),
        "threshold": limit if math.isfinite(limit) else None,
        "word_threshold": word_limit if math.isfinite(word_limit) else None,
    }


def by_chance(marks: Sequence[Marks]) -> dict[str, float | None]:
    """What is expected of a random order of captions and of words at the same false alarms; it knows no word to put there."""
    foils = [m for m in marks if any(m.wrong)]
    right, alarm = len(marks) - len(foils), 100 * FALSE_ALARMS
    return {
        "accuracy": percent(FALSE_ALARMS * len(foils) + (1 - FALSE_ALARMS) * right, len(marks)),
        "found": alarm, "false_alarms": alarm,
        "which": percent(sum(sum(m.wrong) / len(m.wrong) for m in foils), len(foils)),
        "mended": 0.0, "words_found": alarm,
    }  # fmt: skip


def threshold(of_right: Sequence[float]) -> float:
    """The lowest value above which at most FALSE_ALARMS of what is right lies; higher is called wrong. Infinite of none."""
    if not of_right:
        return math.inf
    allowed = int(FALSE_ALARMS * len(of_right) + 1e-9)
    return sorted(of_right, reverse=True)[allowed]


def most(doubt: Sequence[float]) -> int:
    """The place of the highest; of equal ones the last, which does not favour a method that says the same of all words."""
    return max(range(len(doubt)), key=lambda at: (doubt[at], at))


def mends(marks: Marks) -> bool:
    """Whether the fixes of the replaced words are what stood there, but for case and blanks. Heads give a piece for a piece: what
    had more or fewer pieces can only be mended where the spelling is the same."""
    assert marks.should_be is not None
    fixed = "".join(fix or "" for fix, bad in zip(marks.fix, marks.wrong, strict=True) if bad)
    return squeezed(fixed) == squeezed(marks.should_be)


def squeezed(text: str) -> str:
    """Without blanks and case."""
    return "".join(text.split()).lower()


def percent(part: float, whole: float) -> float | None:
    """None where there is nothing to count."""
    return 100 * part / whole if whole else None


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
