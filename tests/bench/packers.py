"""How fast each packer is, and what it waits for: small files in each published layout, packed by one process.

    python tests/bench/packers.py [--images 300] [--output packers.json]

An image has 36 regions of width 2048 and five captions; UNITER's also 1,601 soft labels a region. `extract` reads pictures of
640 x 480 pixels and runs a model of tests/preprocess/tiny_vision.py, so that the row is what decoding and packing allow, whatever
the model costs on top. Inputs are written, flushed
and dropped from the page cache, so that reading them is reading the disk. Wall time is split into CPU, waiting for a CPU
(another process had it: the machine's load, not the packer's) and the rest, which is the disk. `read` and `check` are the
shares of CPU time in the source's reader (of `extract`: decoding and scaling, by its threads) and in checksums, `model` that in
the forwards; what remains is tokenising, spans, npy and tar. CPU time is that of all threads and may exceed the wall time; waiting
for a CPU is the first thread's. The index is built, and a model loaded, before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "preprocess"))

import numpy as np
import published as pub
import tiny_vision
from PIL import Image
from tiny_inputs import tsv_line

from preprocess import build, extract, pack
from preprocess.records import PackOptions
from preprocess.sources import SOURCES

REGIONS, WIDTH, CLASSES, CAPTIONS = 36, 2048, 1601, 5
TEXT = "a man rid ##ing a red bike on the black mat with a dog ."
SENTENCE = "a man riding a red bike on the black mat with a dog ."


def images(count: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for number in range(count):
        yield f"coco_train2014_{number:012d}.npz", pub.image_arrays(number, REGIONS, WIDTH, CLASSES)


def write_uniter(folder: Path, count: int, encode: Callable[[dict], bytes], variant: str) -> list[str]:
    values = {name: encode(arrays) for name, arrays in images(count)}
    ids = pub.ids_of(TEXT)
    owned = {name: [f"{n}-{k}" for k in range(CAPTIONS)] for n, name in enumerate(values)}
    pub.write_txt_db(folder / "txt.db", {id_: {"input_ids": ids, "tree": {}} for part in owned.values() for id_ in part}, owned)
    pub.write_img_db(folder / "img" / variant, values, map_size=1 << 36)
    return ["uniter-lmdb", "--txt", f"train={folder}/txt.db", "--img", f"{folder}/img"]


def write_scan(folder: Path, count: int) -> list[str]:
    features = np.stack([arrays["features"].astype(np.float32) for _, arrays in images(count)])
    np.save(folder / "train_ims.npy", features)
    (folder / "train_caps.txt").write_text(f"{SENTENCE}\n" * (CAPTIONS * count))
    return ["scan-npy", "--folder", str(folder)]


def write_tsv(folder: Path, count: int) -> list[str]:
    listed = []
    with open(folder / "train.tsv", "wb") as stream:
        for number, (name, arrays) in enumerate(images(count)):
            stream.write(tsv_line(name.removesuffix(".npz"), arrays["conf"], arrays["features"]))
            sentences = [{"raw": SENTENCE, "sentid": CAPTIONS * number + k} for k in range(CAPTIONS)]
            listed.append({"filename": name.replace(".npz", ".jpg"), "split": "train", "sentences": sentences})
    (folder / "split.json").write_text(json.dumps({"images": listed}))
    return ["butd-tsv", "--tsv", f"{folder}/train.tsv", "--split", f"{folder}/split.json", "--select", "fixed36"]


def write_pictures(folder: Path, count: int, model: str) -> list[str]:
    listed = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse, "RGB").resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=90)
        sentences = [{"raw": SENTENCE, "sentid": CAPTIONS * number + k} for k in range(CAPTIONS)]
        listed.append({"filename": f"{number:06d}.jpg", "split": "train", "sentences": sentences})
    (folder / "split.json").write_text(json.dumps({"images": listed}))
    tiny_vision.save_model(folder / "model", model)
    return ["extract", "--pictures", str(folder), "--model", f"{folder}/model", "--split", f"{folder}/split.json"]


FORMATS: dict[str, Callable[[Path, int], list[str]]] = {
    "uniter-lmdb msgpack": lambda folder, count: write_uniter(folder, count, pub.msgpack_value, "feat_numbb36"),
    "uniter-lmdb npz": lambda folder, count: write_uniter(folder, count, pub.npz_value, "feat_numbb36_compressed"),
    "scan-npy": write_scan,
    "butd-tsv": write_tsv,
    "extract vit": lambda folder, count: write_pictures(folder, count, "vit"),
    "extract detr": lambda folder, count: write_pictures(folder, count, "detr"),
}


def drop_cache(folder: Path) -> int:
    """Write the files out and drop them from the page cache; their bytes."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            total += path.stat().st_blocks * 512  # LMDB files are sparse
    return total


def queued() -> float:
    """Seconds that this thread was ready to run but had no CPU."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


@contextmanager
def timed(owner: Any, name: str, total: list[float]) -> Iterator[None]:
    """CPU seconds spent in a function, added up."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        begin = time.thread_time()
        try:
            return original(*args, **named)
        finally:
            total[0] += time.thread_time() - begin

    with patch.object(owner, name, wrapped):
        yield


def measure(arguments: list[str], inputs: Path, out: Path, count: int) -> dict[str, float]:
    common = ["--out", str(out), "--spans", "rules", "--shard-size", "100"]
    extracts = arguments[0] == "extract"
    args = extract.parse([*arguments[1:], *common]) if extracts else pack.parse([*arguments, *common])
    begin = time.perf_counter()
    source: Any = extract.make_source(args) if extracts else SOURCES[args.source].make(args)
    index = time.perf_counter() - begin
    shaping = {name: getattr(args, name) for name in pack.OPTION_FIELDS if name != "workers"}
    options = PackOptions(**shaping, workers=1, arguments={})
    read, check, model = [0.0], [0.0], [0.0]
    forwards = timed(source, "extract", model) if extracts else nullcontext()
    with patch.object(build, "identify", lambda source, options: {}):  # hashing the inputs reads them into the cache
        read_bytes = drop_cache(inputs)
        reader = timed(source, "pixels" if extracts else "record", read)
        with reader, forwards, timed(build, "sha256_of", check):
            wall, cpu, wait = time.perf_counter(), time.process_time(), queued()
            build.pack_corpus(source, options, out)
            wall, cpu, wait = time.perf_counter() - wall, time.process_time() - cpu, queued() - wait
    written = sum(path.stat().st_size for path in out.glob("*.tar"))
    return {
        "images_per_second": count / wall,
        "images_per_cpu_second": count / cpu,
        "read_mb_per_second": read_bytes / 1e6 / wall,
        "written_mb_per_second": written / 1e6 / wall,
        "cpu_share": cpu / wall,
        "queued_share": wait / wall,
        "disk_share": max(1 - (cpu + wait) / wall, 0.0),
        "read_share_of_cpu": read[0] / cpu,
        "check_share_of_cpu": check[0] / cpu,
        "model_share_of_cpu": model[0] / cpu,
        "index_seconds": index,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="(default 300; about 0.4 MB each in every format)")
    parser.add_argument("--folder", type=Path, help="where the files are written for the time of the run (default: the system's)")
    parser.add_argument("--output", type=Path, help="JSON of the results")
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    rows = {}
    print(f"{'format':<20} {'images/s':>9} {'per CPU s':>9} {'MB/s in':>8} {'MB/s out':>8}  cpu queue disk | read check model")
    for name, write in FORMATS.items():
        with tempfile.TemporaryDirectory(dir=args.folder) as place:
            inputs = Path(place) / "inputs"
            inputs.mkdir()
            arguments = [*write(inputs, args.images), "--tokenizer", str(pub.write_vocabulary(Path(place) / "vocab.txt"))]
            rows[name] = row = measure(arguments, inputs, Path(place) / "out", args.images)
        print(
            f"{name:<20} {row['images_per_second']:9.0f} {row['images_per_cpu_second']:9.0f} {row['read_mb_per_second']:8.0f} "
            f"{row['written_mb_per_second']:8.0f} {row['cpu_share']:4.0%} {row['queued_share']:5.0%} {row['disk_share']:4.0%} | "
            f"{row['read_share_of_cpu']:4.0%} {row['check_share_of_cpu']:5.0%} {row['model_share_of_cpu']:5.0%}"
        )
    print(f"{args.images} images, one process, load average {load:.1f} on {os.cpu_count()} CPUs, {platform.machine()}")
    if args.output is not None:
        args.output.write_text(json.dumps({"images": args.images, "load": load, "cpus": os.cpu_count(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
