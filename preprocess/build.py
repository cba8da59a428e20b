"""Packing a source: one shard is one unit of work, a journal makes the run resumable, the manifest comes last."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from preprocess.records import Caption, ImageRecord, PackOptions, Source
from preprocess.shards import ShardEntry, ShardWriter, atomic, check_record, clip_spans, sha256_of, write_json
from preprocess.spans import SpanFinder
from preprocess.tokenizer import get_tokenizer
from tagsds.errors import UserError

VERSION = "0.1.0"
JOURNAL = ".journal"
SAMPLE_BYTES = 1 << 20  # of a large input file, at either end, that count for its identity
SHARD_NAME = re.compile(r"^[A-Za-z0-9_]+-\d{6}\.tar$")


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
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(out / "tokenizer")
        self.spans = SpanFinder(options.spans)

    def pack(self, job: Job) -> ShardEntry:
        """Write the shard, then its line in the journal."""
        entry = ShardEntry(job.file, 0, 0, 0, 0, "")
        with atomic(self.out / job.file) as stream:
            writer = ShardWriter(stream)
            for key in job.keys:
                record = self.source.record(job.split, key)
                check_record(record, self.source.feature_dim, self.source.num_classes)
                record.captions = [c for caption in record.captions if (c := self.finish(caption, record, entry))]
                if record.captions:  # otherwise all of them were too long, and dropping was asked for
                    writer.write(record)
                    entry.samples += 1
                    entry.captions += len(record.captions)
                    entry.regions += len(record.regions)
                    entry.max_regions = max(entry.max_regions, len(record.regions))
            writer.close()
        entry.bytes = (self.out / job.file).stat().st_size
        entry.sha256 = sha256_of(self.out / job.file)
        write_json(self.out / JOURNAL / f"{job.file}.json", asdict(entry))
        return entry

    def finish(self, caption: Caption, record: ImageRecord, entry: ShardEntry) -> Caption | None:
        """Clean the white space, find the spans, hold the limit of word pieces; None where the caption is dropped."""
        where = f"{record.origin}: caption {caption.id} of image {record.key}"
        if caption.spans is None:
            text = " ".join(caption.text.split())
            if not text:
                raise UserError(f"{where} is empty; remove it from the captions file.")
            caption = Caption(caption.id, text, self.spans(text))
        limit = self.options.max_caption_pieces
        encoded = self.tokenizer(caption.text, return_offsets_mapping=True)
        pieces = len(encoded["input_ids"])
        if pieces > limit:
            if self.options.long_captions == "error":
                raise UserError(
                    f"{where} has {pieces} word pieces, the limit is {limit}; "
                    "use --long-captions truncate or drop, or raise --max-caption-pieces."
                )
            if self.options.long_captions == "drop":
                entry.dropped += 1
                return None
            end = encoded["offset_mapping"][limit - 2][1]  # the last piece that leaves room for [SEP]
            caption = clip_spans(caption, end)
            entry.truncated += 1
            pieces = limit
        entry.max_pieces = max(entry.max_pieces, pieces)
        return caption


_packer: Packer | None = None


def _start_worker(source: Source, options: PackOptions, out: Path, parent: int) -> None:
    global _packer
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
    """Write the whole corpus, or what is missing of it. False if it was complete already."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # processes are the parallelism here
    identity = identify(source, options)
    if not prepare_folder(out, identity, options.overwrite):
        return False
    splits = source.splits()
    jobs = make_jobs(splits, options.shard_size)
    if not jobs:
        raise UserError("the split holds no images; check --split and the captions file.")
    vocab_size = write_tokenizer(source, options, out)
    done = finished(jobs, out)
    bar = tqdm(total=sum(map(len, splits.values())), unit="image", desc=f"pack {source.name}", mininterval=0.5)
    with bar:
        bar.update(sum(len(job.keys) for job in jobs if job.file in done))
        todo = [job for job in jobs if job.file not in done]
        for job, entry in run_jobs(todo, source, options, out):
            done[job.file] = entry
            bar.update(len(job.keys))
    edits = write_edits(source, splits, out)
    write_json(out / "manifest.json", manifest(source, options, identity, jobs, done, vocab_size, edits))
    shutil.rmtree(out / JOURNAL)
    return True


def run_jobs(
    jobs: list[Job], source: Source, options: PackOptions, out: Path
) -> Iterator[tuple[Job, ShardEntry]]:
    """Pack the jobs in this process or in several; yields them as they finish."""
    if options.workers <= 1 or len(jobs) <= 1:
        if jobs:
            packer = Packer(source, options, out)
            yield from ((job, packer.pack(job)) for job in jobs)
        return
    context = get_context("forkserver" if "forkserver" in _methods() else "spawn")
    arguments = (source, options, out, os.getpid())
    with ProcessPoolExecutor(options.workers, context, _start_worker, arguments) as pool:
        futures = {pool.submit(_work, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
