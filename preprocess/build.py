"""Packing a source: one shard is one unit of work, a journal makes the run resumable, the manifest comes last."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from preprocess.pieces import piece_spans
from preprocess.records import CAPTION_LIMITS, Caption, ImageRecord, PackOptions, Source
from preprocess.resume import JOURNAL, finished, identify, note, prepare_folder, remove_halves
from preprocess.shards import ShardEntry, ShardWriter, check_record, clip_pieces, clip_spans
from preprocess.slices import check_begun, halves, missing, tokenizer_of
from preprocess.spans import SpanFinder, resolve
from preprocess.tokenizer import get_tokenizer
from tagsds.errors import UserError, nearest
from tagsds.files import atomic, sha256_of, write_json
from tagsds.formats.manifest import FORMAT, VERSION, files_of_tokenizer

SPLIT_TOTALS = ("images", "captions", "regions", "max_caption_pieces")
PACKER_VERSION = "0.1.0"


@dataclass(frozen=True)
class Job:
    """A shard to be written."""

    file: str
    split: str
    keys: list[str]


class Packer:
    """Turns the records of one job into one shard; lives in a worker process."""

    def __init__(self, source: Source, options: PackOptions, out: Path) -> None:
        self.source, self.options, self.out = source, options, out
        self.tokenizer_folder = tokenizer_folder(options, out)
        self.tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(self.tokenizer_folder)
        self.spans = SpanFinder(options.spans)

    def pack(self, job: Job) -> ShardEntry:
        """Write the shard, then its line in the journal."""
        entry = ShardEntry(job.file, 0, 0, 0, 0, "")
        prepare = getattr(self.source, "prepare", None)  # see records.PreparedSource
        keys = job.keys if prepare is None else prepare(job.split, job.keys)
        with atomic(self.out / job.file) as stream, ShardWriter(stream) as writer:
            for key in keys:
                record = self.source.record(job.split, key)
                check_record(record, self.source.feature_dim, self.source.num_classes)
                finished_captions = (self.finish(caption, record, entry, job.split) for caption in record.captions)
                record.captions = [caption for caption in finished_captions if caption is not None]
                if record.captions:  # otherwise all of them were too long, and dropping was asked for
                    writer.write(record)
                    entry.samples += 1
                    entry.captions += len(record.captions)
                    entry.regions += len(record.regions)
                    entry.max_regions = max(entry.max_regions, len(record.regions))
        entry.bytes = (self.out / job.file).stat().st_size
        entry.sha256 = sha256_of(self.out / job.file)
        note(entry, self.tokenizer_folder, self.out)
        return entry

    def finish(self, caption: Caption, record: ImageRecord, entry: ShardEntry, split: str) -> Caption | None:
        """Clean the white space, find the spans, hold the split's limit of word pieces if it has one; None where the caption is
        dropped."""
        where = f"{record.captions_origin or record.origin}: caption {caption.id} of image {record.key}"
        words = None if caption.ids is None else [str(self.tokenizer.convert_ids_to_tokens(i)) for i in caption.ids]
        if words is not None and caption.spans is None:
            caption = replace(caption, spans=piece_spans(words, self.spans))
        elif caption.spans is None:
            text = " ".join(caption.text.split())
            if not text:
                raise UserError(f"{where} is empty; remove it from the captions file.")
            caption = Caption(caption.id, text, self.spans(text))
        encoded = self.tokenizer(caption.text, return_offsets_mapping=True) if words is None else {}
        pieces = len(encoded["input_ids"]) if words is None else len(words) + 2
        limit = self.options.max_caption_pieces.get(split)
        if limit is not None and pieces > limit:
            if self.options.long_captions == "error":
                raise UserError(
                    f"{where} has {pieces} word pieces, the limit of split '{split}' is {limit}; "
                    f"use --long-captions truncate or drop, or --max-caption-pieces {split}={pieces}."
                )
            if self.options.long_captions == "drop":
                entry.dropped += 1
                return None
            if words is not None:
                caption = clip_pieces(caption, limit - 2, words)
            else:
                end = encoded["offset_mapping"][limit - 2][1]  # the last piece that leaves room for [SEP]
                caption = clip_spans(caption, end)
            entry.truncated += 1
            pieces = limit
        entry.max_pieces = max(entry.max_pieces, pieces)
        return caption


_packer: Packer | None = None


def _start_worker(source: Source, options: PackOptions, out: Path, parent: int) -> None:
    global _packer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _packer = Packer(source, options, out)

    def watch() -> None:  # a worker whose parent was killed would wait for work for ever
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job) -> ShardEntry:
    assert _packer is not None
    return _packer.pack(job)


def pack_corpus(source: Source, options: PackOptions, out: Path) -> bool:
    """Write the whole corpus, or what is missing of it; with options.slice its share of the shards, with options.merge the manifest
    alone. False if the corpus was complete already."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are the parallelism here
    options = replace(options, spans=resolve(options.spans))
    splits = source.splits()
    for split in options.max_caption_pieces.keys() - splits.keys() - CAPTION_LIMITS.keys():
        raise UserError(f"--max-caption-pieces names split '{split}', the corpus has no such split; {nearest(split, splits)}")
    identity = identify(source, options)
    if options.merge:
        check_begun(out)
    if not prepare_folder(out, identity, options.overwrite):
        return False
    jobs = make_jobs(splits, options.shard_size)
    if not jobs:
        raise UserError("the split holds no images; check --split and the captions file.")
    vocab_size = write_tokenizer(source, options, out)
    files = [job.file for job in jobs]
    if options.slice is not None:
        remove_halves(halves(options.slice.share(files), out))
        pack_jobs(options.slice.share(jobs), source, options, out)
        return True
    if options.merge:
        done = finished(files, tokenizer_folder(options, out), out)
        if sentence := missing(files, done, out):
            raise UserError(sentence)
    remove_halves(out.rglob(".*.tmp"))
    if not options.merge:
        done = pack_jobs(jobs, source, options, out)
    edits = write_edits(source, splits, out)
    write_json(out / "manifest.json", manifest(source, identity, jobs, done, tokenizer_facts(out, vocab_size), edits))
    shutil.rmtree(out / JOURNAL, ignore_errors=True)
    return True


def pack_jobs(jobs: list[Job], source: Source, options: PackOptions, out: Path) -> dict[str, ShardEntry]:
    """Write those of the jobs that are not done; the entries of all."""
    done = finished([job.file for job in jobs], tokenizer_folder(options, out), out)
    with tqdm(total=sum(len(job.keys) for job in jobs), unit="image", desc=f"pack {source.name}", mininterval=0.5) as bar:
        bar.update(sum(len(job.keys) for job in jobs if job.file in done))
        for job, entry in run_jobs([job for job in jobs if job.file not in done], source, options, out):
            done[job.file] = entry
            bar.update(len(job.keys))
    return done


def run_jobs(jobs: list[Job], source: Source, options: PackOptions, out: Path) -> Iterator[tuple[Job, ShardEntry]]:
    """Pack the jobs in this process or in several; yields them as they finish."""
    if options.workers <= 1 or len(jobs) <= 1:
        if jobs:
            packer = Packer(source, options, out)
            yield from ((job, packer.pack(job)) for job in jobs)
        return
    context = get_context(
        "fork" if "fork" in get_all_start_methods() else "spawn"
    )  # fork: the index is shared, not sent
    arguments = (source, options, out, os.getpid())
    with ProcessPoolExecutor(options.workers, context, _start_worker, arguments) as pool:
        futures = {pool.submit(_work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def make_jobs(splits: dict[str, list[str]], shard_size: int) -> list[Job]:
    """Consecutive images of a split, `shard_size` at a time."""
    return [
        Job(f"{split}-{start // shard_size:06d}.tar", split, keys[start : start + shard_size])
        for split, keys in splits.items()
        for start in range(0, len(keys), shard_size)
    ]


def tokenizer_folder(options: PackOptions, out: Path) -> Path:
    """Beside the shards; a slice has one of its own, so that no two write the same file."""
    return out / "tokenizer" if options.slice is None else tokenizer_of(options.slice, out)


def write_tokenizer(source: Source, options: PackOptions, out: Path) -> int:
    """Save the tokenizer in its folder, trained on the first split (train where there is one); its size."""
    splits = list(source.splits())
    first = "train" if "train" in splits else splits[0]
    tokenizer = get_tokenizer(options.tokenizer, source.texts(first), options.vocab_size)
    tokenizer.save_pretrained(tokenizer_folder(options, out))
    return len(tokenizer)


def write_edits(source: Source, splits: dict[str, list[str]], out: Path) -> dict:
    """Write edits/<split>/<kind>.json where the source has any; their counts and checksums."""
    written: dict[str, dict] = {}
    for split in splits:
        for kind, rows in source.edits(split).items():
            path = out / "edits" / split / f"{kind}.json"
            write_json(path, {str(index): row for index, row in enumerate(rows)})
            written.setdefault(split, {})[kind] = {"pairs": len(rows), "sha256": sha256_of(path)}
    return written


def tokenizer_facts(out: Path, vocab_size: int) -> dict:
    """What the manifest says of the tokenizer beside the shards."""
    return {"tokenizer": "tokenizer", "vocab_size": vocab_size, "tokenizer_files": files_of_tokenizer(out / "tokenizer")}


def manifest(
    source: Source, identity: dict, jobs: list[Job], done: dict[str, ShardEntry], tokenizer: dict, edits: dict
) -> dict:
    """The contents of manifest.json."""
    splits: dict[str, dict] = {}
    for job in jobs:
        entry = done[job.file]
        split = splits.setdefault(job.split, {**dict.fromkeys(SPLIT_TOTALS, 0), "shards": []})
        split["images"] += entry.samples
        split["captions"] += entry.captions
        split["regions"] += entry.regions
        split["max_caption_pieces"] = max(split["max_caption_pieces"], entry.max_pieces)
        split["shards"].append(entry.line())
    entries = list(done.values())
    return {
        "format": FORMAT,
        "version": VERSION,
        "feature_dim": source.feature_dim,
        "num_classes": source.num_classes,
        "class_names": source.class_names,
        "background_class": source.background_class,
        "boxes": source.has_boxes,
        "imported_ids": source.imported_ids,
        "max_regions": max(entry.max_regions for entry in entries),
        "max_caption_pieces": max(entry.max_pieces for entry in entries),
        **tokenizer,
        "splits": splits,
        "edits": edits,
        "captions_truncated": sum(entry.truncated for entry in entries),
        "captions_dropped": sum(entry.dropped for entry in entries),
        "made_by": {
            "command": getattr(source, "command", "tagsds-pack"),
            "source": source.name,
            **({"model": model} if (model := getattr(source, "model", "")) else {}),  # a name: it is no part of the identity
            "arguments": identity,
            "version": PACKER_VERSION,
        },
    }
