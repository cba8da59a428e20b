"""Hard negative captions for a split of a corpus, written by a trained encoder with the image in view (TAGS, arXiv 2111.03349).

    tagsds-write --checkpoint RUN --data SHARDS --split train [--number 4] [--layout jsonl | sugarcrepe | shards]
    tagsds-write ... --max-score 0.9 --above-true 0 --most-words 2 --kinds object attribute --rebalance
    torchrun --nproc-per-node 8 -m tagsds.write --checkpoint ...

The captions are dealt out in blocks; each block is a file, so that a killed run goes on where it was, and the result does not
depend on how many processes share the work. FOLDER/negatives.jsonl has a line a negative:

    {"image": key, "caption_id": id, "caption": text, "caption_score": s(I, T), "text": the negative, "score": s(I, T~),
     "kind": kind of edit, "changes": [{"old", "new", "start", "end", "kind"}, ...],
     "blind": log-likelihood of the caption minus that of the negative, by the words alone}

`--layout sugarcrepe` writes FOLDER/edits/<kind>.json instead, which tagsds-evaluate reads with --pairs; `--layout shards` makes
FOLDER a corpus whose samples of the split have the negatives as one member more (tagsds/negatives/written_shards.py).
FOLDER/figures.json has the figures that the command prints: written, dropped by each filter, kinds, and how often a blind scorer
prefers the true caption. That scorer is the encoder's own masked-word likelihood with no region behind the words
(tagsds/scoring/likelihood.py): what it finds can be guessed from the words alone.
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file (`deepspeed tagsds/write.py`): imports start at the repository
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tagsds.data.bank import Bank
from tagsds.data.ragged import Ragged
from tagsds.data.samples import captions_of
from tagsds.data.shards import load_bank, load_shards, read_samples
from tagsds.data.spans import find_spans
from tagsds.data.vocabulary import corpus_tokenizer
from tagsds.data.words import Spelling
from tagsds.draw import Draw
from tagsds.errors import UserError, check_whole
from tagsds.files import check_exist, read_json_object, sha256_of, write_json
from tagsds.formats.manifest import Manifest, read_manifest
from tagsds.models.load import check_data, find_checkpoint, load_model, read_encoder_config
from tagsds.negatives.attested import Attested
from tagsds.negatives.balance import balanced
from tagsds.negatives.sentences import KINDS, OPTIONAL, Rules, Sentence, SentenceWriter, check_writes
from tagsds.negatives.writer import SyntheticConfig
from tagsds.negatives.written_files import count_block, join_parts, summary
from tagsds.negatives.written_shards import finish_corpus, write_shard
from tagsds.ranks import World, run_command
from tagsds.scoring.likelihood import pseudo_likelihood
from tagsds.scoring.scorer import Scorer

BLOCK = 16  # captions that are written for together
POOL = 4  # times as many negatives are looked at as --rebalance takes
ABOVE_TRUE, ATTESTED = -0.2, 3  # of 100 negatives that were read, 86 were false and fluent, 17 without (docs/results/written.md)


class Writing:
    """One run of the command: what it was asked for, and where its parts lie."""

    def __init__(self, options: argparse.Namespace, world: World) -> None:
        self.options, self.world = options, world
        self.checkpoint, home = find_checkpoint(options.checkpoint)
        self.manifest: Manifest = read_manifest(options.data)
        self.shards = self.manifest.shards(options.split)
        config = read_encoder_config(self.checkpoint)
        check_data(config, self.checkpoint, self.manifest)
        longest = self.manifest.caption_pieces(options.split)
        if longest > config.max_position_embeddings:
            raise UserError(
                f"{options.data}: a caption of '{options.split}' has {longest} word pieces and the checkpoint's "
                f"max_position_embeddings is {config.max_position_embeddings}; pack the corpus again with --long-captions truncate."
            )
        self.folder = options.output or Path(options.data) / "negatives" / f"{home.resolve().name}-{options.split}"
        self.parts = self.folder / "parts"
        check_exist([self.checkpoint / "model.safetensors"])
        self.settings = {
            "checkpoint_sha256": sha256_of(self.checkpoint / "model.safetensors"),
            "data_sha256": sha256_of(self.manifest.folder / "manifest.json"),
            "split": options.split,
            "layout": options.layout,
            "number": options.number,
            "seed": options.seed,
            "blind": not options.no_blind,
            "rebalance": options.rebalance,
            "synthetic": vars(synthetic_of(options)),
            "rules": {key: list(value) if isinstance(value, tuple) else value for key, value in vars(rules_of(options)).items()},
        }

    def say(self, text: str) -> None:
        if self.world.is_main:
            tqdm.write(text)

    def finished(self) -> bool:
        """Whether the folder is whole already; UserError where it is something else's."""
        whole, begun = self.folder / "figures.json", self.parts / "settings.json"
        for path in (whole, begun):
            if path.is_file():
                found = read_json_object(path, f"remove {self.folder} or name another --output")
                found = found.get("settings", {}) if path == whole else found
                for key, value in self.settings.items():
                    if not isinstance(found, dict) or found.get(key) != value:
                        raise UserError(
                            f"{path} is of a run with another {key}; give the options it was begun with, name another --output, or "
                            f"remove {self.folder}."
                        )
        other = self.folder / "manifest.json"
        if self.options.layout == "shards" and other.is_file() and not whole.is_file() and not begun.is_file():
            raise UserError(f"{other} is of another corpus; name a new folder as --output.")
        return whole.is_file()

    def run(self) -> None:
        if self.finished():
            self.say(f"{self.folder} holds these negatives already; nothing to do")
            return
        self.world.wait()  # all have looked before the first writes
        if self.world.is_main:
            self.parts.mkdir(parents=True, exist_ok=True)
            write_json(self.parts / "settings.json", self.settings)
        self.world.wait()
        begin = time.perf_counter()
        self.write_blocks()
        self.world.wait()
        if self.options.layout == "shards":
            self.write_shards()
            self.world.wait()
        if self.world.is_main:
            parts = [self.part(shard, start) for shard, start in self.blocks()]
            figures = join_parts(self.folder, parts, self.options.layout)
            if self.options.layout == "shards":
                about = {"captions": figures["captions"], "negatives": figures["kept"], "settings": self.settings}
                finish_corpus(self.manifest, self.options.split, self.folder, map(self.note, range(len(self.shards))), about)
            write_json(self.folder / "figures.json", {"settings": self.settings, "figures": figures})  # last: the folder is whole
            shutil.rmtree(self.parts)
            seconds = time.perf_counter() - begin
            self.say(summary(figures))
            self.say(f"written to {self.folder} in {seconds:.1f} s on {self.world.size} processes")
        self.world.wait()

    def blocks(self) -> list[tuple[int, int]]:
        """(number of the shard, first caption in it) of every block, in order."""
        return [(number, start) for number, shard in enumerate(self.shards) for start in range(0, shard["captions"], BLOCK)]

    def part(self, shard: int, start: int) -> Path:
        return self.parts / f"{shard:06d}-{start:09d}.json"

    def note(self, shard: int) -> Path:
        return self.parts / f"shard-{shard:06d}.json"

    def write_shards(self) -> None:
        """This rank's share of the shards, with their negatives."""
        blocks = self.blocks()
        for number in range(self.world.rank, len(self.shards), self.world.size):
            parts = [self.part(shard, start) for shard, start in blocks if shard == number]
            write_shard(self.manifest, self.shards[number], parts, self.folder, self.note(number))

    def write_blocks(self) -> None:
        """This rank's blocks whose files are not there: neighbours, so that each rank reads few shards."""
        blocks = self.blocks()
        first, last = (len(blocks) * (self.world.rank + more) // self.world.size for more in (0, 1))
        todo = [block for block in blocks[first:last] if not self.part(*block).is_file()]
        if not todo:
            return
        model = load_model(self.checkpoint)
        check_writes(model, self.checkpoint)
        torch.nn.Module.to(model, self.world.device)
        tokenizer, options = corpus_tokenizer(self.manifest), self.options
        scorer = Scorer(model)
        scorer.ready()
        writer = SentenceWriter(model, scorer, tokenizer, synthetic_of(options), rules_of(options), self.attested(len(tokenizer)))
        loaded, bank, spans = -1, None, []
        for shard, start in tqdm(todo, desc="write", unit=f"x{BLOCK} captions", disable=not self.world.is_main):
            if shard != loaded:
                bank, spans, loaded = *self.read_shard(shard, len(tokenizer)), shard
            assert bank is not None
            write_json(self.part(shard, start), self.write_block(writer, bank, spans, shard, start))

    def attested(self, pieces: int) -> Attested | None:
        """The runs of pieces of all captions of the corpus, which are read through the cache of its tables."""
        if not self.options.attested:
            return None
        folder = self.manifest.folder
        tables = (load_bank(folder, split, classes=False, cache="")[0].tokens for split in self.manifest.splits)
        return Attested(tables, self.options.attested, pieces)

    def read_shard(self, number: int, pieces: int) -> tuple[Bank, list[list[dict[str, Any]]]]:
        """A shard, and the spans of its captions with their kinds."""
        shard = self.shards[number]
        bank = load_shards(self.manifest, [shard], classes=False).to(self.world.device)
        path = self.manifest.folder / shard["file"]
        spans: list[list[dict[str, Any]]] = []
        for sample in read_samples([path]):
            spans += [caption.get("spans", []) for caption in captions_of(sample, f"{path}, {sample['__key__']}", pieces)]
        return bank, spans

    def write_block(
        self, writer: SentenceWriter, bank: Bank, spans: list[list[dict[str, Any]]], shard: int, start: int
    ) -> dict[str, Any]:
        """Entries and counts of a block of captions."""
        numbers = range(start, min(start + BLOCK, bank.num_captions))
        sentences = [sentence_of(writer.tokenizer, bank, number, spans[number]) for number in numbers]
        captions = torch.tensor(list(numbers), device=bank.device)
        most = self.options.number * (POOL if self.options.rebalance else 1)
        sheets = writer.write(bank, captions, sentences, most, Draw(self.options.seed, shard, start))
        margins: Sequence[Sequence[float | None]] = [[None] * len(sheet) for sheet in sheets]
        if not self.options.no_blind:
            margins = blind_margins(writer, [[sheet.caption, *(negative.text for negative in sheet)] for sheet in sheets])
        if self.options.rebalance:
            chosen = balanced(margins, self.options.number)
            margins = [[row[at] for at in places] for row, places in zip(margins, chosen, strict=True)]
            for sheet, places in zip(sheets, chosen, strict=True):
                sheet.keep(places)
        entries = []
        for number, sheet, blind in zip(numbers, sheets, margins, strict=True):
            image = bank.keys[int(bank.image_of_caption[number])]
            about = {
                "image": image, "caption_id": bank.caption_ids[number], "caption": sheet.caption,
                "caption_score": round(sheet.score, 6),
            }  # fmt: skip
            entries += [about | n.as_json() | {"blind": margin} for n, margin in zip(sheet, blind, strict=True)]
        captions_of_part = [
            {"id": bank.caption_ids[number], "score": round(sheet.score, 6), "negatives": len(sheet)}
            for number, sheet in zip(numbers, sheets, strict=True)
        ]
        return {"entries": entries, "captions": captions_of_part, "counts": count_block(sheets, self.options.number)}


def sentence_of(tokenizer: Any, bank: Bank, number: int, spans: list[dict[str, Any]]) -> Sentence:
    """A caption of the bank; where the corpus has no spans of it, the rules find the kinds of its words."""
    spelling = Spelling.of_ids(tokenizer, bank.tokens[number][1:-1].tolist(), bank.texts[number])
    if spans:
        return Sentence.of(spelling, bank.spans[number].cpu(), [str(span.get("kind", "other")) for span in spans])
    found = find_spans(spelling.text)
    rows = [
        (n, 1 + at)
        for n, span in enumerate(found)
        for at, (a, b) in enumerate(spelling.offsets)
        if any(a < end and b > begin for begin, end in span.chars)
    ]
    return Sentence.of(spelling, torch.tensor(rows, dtype=torch.int64).view(-1, 2), [span.kind for span in found])


def blind_margins(writer: SentenceWriter, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """For lists of a caption and its negatives: log-likelihood of the caption minus that of each negative, in nats to four places,
    by the words alone. Above zero: the blind scorer prefers the caption."""
    rows = [torch.tensor(row) for row in writer.tokenizer([text for some in texts for text in some])["input_ids"]]
    found = pseudo_likelihood(writer.model, Ragged.from_rows(rows).to(writer.model.device), writer.vocab)
    parts = [part.tolist() for part in found.split([len(some) for some in texts])]
    return [[round(part[0] - one, 4) for one in part[1:]] for part in parts]


def synthetic_of(options: argparse.Namespace) -> SyntheticConfig:
    """How candidates are drawn."""
    return SyntheticConfig(options.maskings, options.refills, options.tau, options.mask_probability)


def rules_of(options: argparse.Namespace) -> Rules:
    """What is kept of them."""
    without = tuple(name for name in OPTIONAL if name in options.without)
    kinds = tuple(kind for kind in KINDS if kind in options.kinds)
    return Rules(without, kinds, options.most_words, options.min_score, options.max_score, options.above_true, options.attested)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tagsds-write", description="Hard negative captions by a trained encoder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="an encoder's training run, or a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of packed shards")
    parser.add_argument("--split", default="train")
    parser.add_argument("--number", type=int, default=4, metavar="N", help="most negatives of a caption (4)")
    parser.add_argument("--layout", choices=("jsonl", "sugarcrepe", "shards"), default="jsonl")
    parser.add_argument("--output", type=Path, help="folder (otherwise SHARDS/negatives/<name of the run>-<split>)")
    parser.add_argument("--seed", type=int, default=42)
    drawn, kept = SyntheticConfig(), Rules()
    parser.add_argument("--maskings", type=int, default=drawn.maskings, metavar="N", help="masked copies of a caption")
    parser.add_argument("--refills", type=int, default=drawn.refills, metavar="N", help="sentences drawn from each masked copy")
    parser.add_argument("--tau", type=float, default=drawn.tau, help="temperature of the refilling softmax")
    parser.add_argument("--mask-probability", type=float, default=drawn.mask_probability, metavar="P")
    parser.add_argument("--without", nargs="+", choices=OPTIONAL, default=[], help="filters that are left out")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[], help="kinds of edit that are kept (all)")
    parser.add_argument("--most-words", type=int, metavar="N", help="most words that are changed")
    parser.add_argument("--min-score", type=float, default=kept.min_score, metavar="S", help="lowest s(I, T~), 0..1")
    parser.add_argument("--max-score", type=float, default=kept.max_score, metavar="S", help="highest s(I, T~), 0..1")
    parser.add_argument("--above-true", type=float, default=ABOVE_TRUE, metavar="S",
                        help="most by which s(I, T~) may exceed s(I, T); -0.2: it has to be 0.2 lower; 1: any")  # fmt: skip
    parser.add_argument("--attested", type=int, choices=(0, 2, 3), default=ATTESTED, metavar="N",
                        help="changed runs of N word pieces have to occur in the corpus's captions; 0: any")  # fmt: skip
    parser.add_argument("--no-blind", action="store_true", help="leave the blind scorer out, which takes a forward a word")
    parser.add_argument("--rebalance", action="store_true",
                        help="choose negatives of which the blind scorer tells half from their captions")  # fmt: skip
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_whole(options, "number", "maskings", "refills", "most_words")
    if options.rebalance and options.no_blind:
        raise UserError("--rebalance needs the blind scorer, which --no-blind leaves out; omit one of them.")
    if not 0 < options.tau < float("inf"):
        raise UserError(f"--tau is {options.tau}; give a temperature above zero.")
    if not 0 <= options.mask_probability < 1:
        raise UserError(f"--mask-probability is {options.mask_probability}; give a probability below 1.")
    if not 0 <= options.min_score <= options.max_score <= 1:
        raise UserError(f"--min-score {options.min_score} and --max-score {options.max_score} are no range within 0..1.")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """tagsds-write."""
    run_command(lambda: parse_arguments(arguments), lambda options, world: Writing(options, world).run())


if __name__ == "__main__":
    main()
