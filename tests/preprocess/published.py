"""Writers of the published layouts, made with the packages the publishers used (msgpack-numpy, np.savez), not with ours."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import lmdb
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np

WORDS = "a black cat dog sits on the mat skate ##board man ' s - . red bike rid".split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", *WORDS, "##ing", "with"]
ID = {piece: number for number, piece in enumerate(VOCABULARY)}


def ids_of(pieces: str) -> list[int]:
    """Ids of pieces written with blanks between them."""
    return [ID[piece] for piece in pieces.split()]


def write_lmdb(folder: Path, values: dict[str, bytes], map_size: int = 1 << 26) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    env = lmdb.open(str(folder), map_size=map_size)
    with env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    env.close()


def txt_value(value: dict) -> bytes:
    return lz4.frame.compress(msgpack.packb(value, use_bin_type=True))


META = {"CLS": 2, "SEP": 3, "MASK": 4, "UNK": 1, "v_range": [5, len(VOCABULARY)], "tokenizer": "bert-tiny-cased"}


def write_txt_db(folder: Path, captions: dict[str, dict], images: dict[str, list[str]], meta: dict | None = None) -> None:
    """`captions`: id -> {input_ids, tree?, ...}; `images`: name -> caption ids."""
    owner = {id_: name for name, ids in images.items() for id_ in ids}
    write_lmdb(folder, {id_: txt_value({"img_fname": owner[id_], **value}) for id_, value in captions.items()})
    (folder / "meta.json").write_text(json.dumps(META if meta is None else meta))
    (folder / "img2txts.json").write_text(json.dumps(images))
    (folder / "txt2img.json").write_text(json.dumps(owner))
    (folder / "id2len.json").write_text(json.dumps({id_: len(value["input_ids"]) for id_, value in captions.items()}))


def image_arrays(seed: int, n: int = 14, width: int = 16, classes: int = 7) -> dict[str, np.ndarray]:
    """float16, the confidence falling as the publisher's detector sorts it."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((n, 2, 2)), axis=1)
    corners[0, 1] = 1.0  # a box that ends at the border
    boxes = np.concatenate([corners[:, 0], corners[:, 1], corners[:, 1] - corners[:, 0]], axis=1)
    labels = rng.random((n, classes))
    arrays = {
        "features": rng.standard_normal((n, width)),
        "norm_bb": boxes,
        "conf": np.sort(rng.random(n))[::-1],
        "soft_labels": labels / labels.sum(axis=1, keepdims=True),
    }
    return {name: np.ascontiguousarray(array, dtype=np.float16) for name, array in arrays.items()}


def msgpack_value(arrays: dict) -> bytes:
    return msgpack.packb(arrays, use_bin_type=True, default=msgpack_numpy.encode)


def npz_value(arrays: dict) -> bytes:
    """With the stray member that UNITER's converter left in every file (a keyword that older numpy took for an array)."""
    stream, stray = io.BytesIO(), io.BytesIO()
    np.savez_compressed(stream, **arrays)
    np.save(stray, np.array(True))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("allow_pickle.npy", stray.getvalue())
    return stream.getvalue()


def write_img_db(folder: Path, values: dict[str, bytes], map_size: int = 1 << 26) -> None:
    write_lmdb(folder, {**values, "__keys__": json.dumps(list(values)).encode()}, map_size)


def write_vocabulary(path: Path) -> Path:
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path
