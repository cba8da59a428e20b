"""Source `uniter-lmdb`: files that are wrong, cut short or dangerous, and options that do not fit, get one sentence."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import published as pub
import pytest
from published import META
from uniter_inputs import CAPTIONS, NAMES, UniterInputs

from preprocess import pack
from preprocess.sources.lmdb_reader import RefusedError, decode_arrays
from tagsds.errors import UserError


class Evil:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def evil_values(marker: Path) -> dict[str, bytes]:
    objects = np.array([Evil(marker)], dtype=object)
    stream = io.BytesIO()
    np.savez(stream, features=objects)
    older = {b"nd": True, b"type": "|O", b"shape": [1], b"data": pickle.dumps(Evil(marker))}
    return {
        "npz": stream.getvalue(),
        "msgpack": msgpack.packb({"features": objects}, use_bin_type=True, default=msgpack_numpy.encode),
        "old msgpack": msgpack.packb({"features": older}),
        "pickle": pickle.dumps(Evil(marker)),
    }


@pytest.mark.parametrize("kind", ["npz", "msgpack", "old msgpack", "pickle"])
def test_no_pickle_is_ever_loaded(inputs: UniterInputs, kind: str) -> None:
    marker = inputs.folder / "marker"
    value = evil_values(marker)[kind]
    if kind == "npz":  # the marker works: loading the usual way would run it
        np.load(io.BytesIO(value), allow_pickle=True)["features"]
        assert marker.exists()
        marker.unlink()
    inputs.write()
    inputs.write_images("feat_th0.2_max100_min10", {name: value for name in NAMES})
    with pytest.raises(UserError, match=r"data.mdb: image coco_train2014_0+25.npz .*pickle.* could run code and is not read"):
        pack.run(inputs.arguments())
    assert not marker.exists()


def test_a_pickle_in_the_text_database(inputs: UniterInputs) -> None:
    marker = inputs.folder / "marker"
    inputs.write()
    pub.write_lmdb(inputs.txt, {"8": pickle.dumps(Evil(marker))})
    with pytest.raises(UserError, match=r"txt.db/data.mdb: caption 8 is a pickle, which could run code and is not read"):
        pack.run(inputs.arguments())
    pub.write_lmdb(inputs.txt, {"8": lz4.frame.compress(pickle.dumps(Evil(marker)))})
    with pytest.raises(UserError, match=r"caption 8 (is no msgpack|holds no map)"):
        pack.run(inputs.arguments())
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 5000, 9000, -4096])
@pytest.mark.parametrize("which", ["txt", "img"])
def test_a_truncated_database(inputs: UniterInputs, keep: int, which: str) -> None:
    inputs.write()
    path = (inputs.txt if which == "txt" else inputs.img / "feat_th0.2_max100_min10") / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(UserError, match=r"data.mdb is cut short: \d+ bytes .*copy it again.$"):
        pack.run(inputs.arguments())
    path.write_bytes(b"\0" * len(data))
    with pytest.raises(UserError, match=r"data.mdb is no LMDB that can be read .*copy it again.$"):
        pack.run(inputs.arguments())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"CLS": 101}, r"meta.json does not fit --tokenizer .*: CLS 101 \(tokenizer: 2\); give the one .*\(bert-tiny-cased\)"),
        ({"v_range": [5, 28996]}, r"v_range up to 28996 \(tokenizer: 26\)"),
        ({"v_range": [6, 26]}, r"v_range from 6 \(tokenizer: '!' is 5\)"),
        ({"v_range": None}, r"meta.json lacks CLS, SEP, MASK or v_range"),
    ],
)
def test_a_vocabulary_that_does_not_fit(inputs: UniterInputs, change: dict, match: str) -> None:
    assert len(pub.VOCABULARY) == 26
    inputs.write()
    (inputs.txt / "meta.json").write_text(json.dumps(META | change))
    with pytest.raises(UserError, match=match):
        pack.run(inputs.arguments())


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"input_ids": [6, 26]}, "caption 7 holds piece 26, the tokenizer has 26 pieces"),
        ({"input_ids": [6, -1]}, "caption 7 holds piece -1"),
        ({"input_ids": []}, "caption 7 has no list of input_ids"),
        ({"input_ids": [6], "tree": {"node": [{"ids": [1]}]}}, "its tree names piece 1 of 1"),
        ({"input_ids": [6], "tree": {"node": [3]}}, r"its tree is not \{relation, attribute, node"),
        ({"input_ids": [6], "img_fname": "other.npz"}, "caption 7 belongs to other.npz, the index says coco_train2014_0+25"),
    ],
)
def test_a_wrong_caption(inputs: UniterInputs, value: dict, match: str) -> None:
    inputs.write(captions=CAPTIONS | {"7": value})
    with pytest.raises(UserError, match=match):
        pack.run(inputs.arguments())


def change_of(name: str, change: Callable[[np.ndarray], None]) -> Callable[[dict], dict]:
    """A change in place of one array of an image."""

    def apply(arrays: dict) -> dict:
        changed = arrays[name].copy()
        change(changed)
        return arrays | {name: changed}

    return apply


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (change_of("norm_bb", lambda a: a.__setitem__((2, 2), 1.5)), r"norm_bb of region 2 .* leaves the image"),
        (change_of("norm_bb", lambda a: a.__setitem__((3, 4), 0.9)), r"norm_bb of region 3 .* has sides that are not x2 - x1"),
        (change_of("features", lambda a: a.__setitem__((1, 1), np.nan)), "features of region 1 are NaN"),
        (change_of("soft_labels", lambda a: a.__setitem__(4, 0.5)), "soft_labels of region 4 sum to 3.500, not 1"),
        (lambda a: a | {"conf": a["conf"][:3]}, "conf has 3 rows for 14 regions"),
        (lambda a: {k: v for k, v in a.items() if k != "norm_bb"}, "has no norm_bb"),
        (lambda a: a | {"norm_bb": a["norm_bb"][:, :5]}, r"norm_bb has shape \[14, 5\], not \[n, 6\]"),
        (lambda a: a | {"features": 3}, "holds no array under 'features'"),
    ],
)
def test_a_wrong_image(inputs: UniterInputs, change, match: str) -> None:
    inputs.write()
    value = pub.msgpack_value(change(inputs.arrays[NAMES[1]]))
    inputs.write_images("feat_th0.2_max100_min10", {NAMES[1]: value})
    with pytest.raises(UserError, match=match):
        pack.run(inputs.arguments())


@pytest.mark.parametrize("cut", [1, 40, 200])
@pytest.mark.parametrize("kind", ["npz", "msgpack"])
def test_a_damaged_value_is_refused(kind: str, cut: int) -> None:
    value = {"npz": pub.npz_value, "msgpack": pub.msgpack_value}[kind](pub.image_arrays(1))
    with pytest.raises(RefusedError):
        decode_arrays(value[:-cut], ("features", "norm_bb"))


def test_folders_that_need_a_choice(inputs: UniterInputs) -> None:
    inputs.write()
    inputs.write_images("all", {NAMES[0]: b""})
    with pytest.raises(UserError, match=r"holds 2 LMDB folders; choose one with --variant: all, feat_th0.2_max100_min10"):
        pack.run(inputs.arguments())
    with pytest.raises(UserError, match=r"has no variant 'any'; it holds: all, feat"):
        pack.run(inputs.arguments("out", "--variant", "any"))
    with pytest.raises(UserError, match=r"is in none of .*all; give its img_db too"):
        pack.run(inputs.arguments("out", "--variant", "all"))
    pack.run(inputs.arguments("out", "--variant", "feat_th0.2_max100_min10"))
    with pytest.raises(UserError, match=r"holds 14 regions, .*nbb_th0.2_max100_min10.json says 20"):
        (inputs.img / "nbb_th0.2_max100_min10.json").write_text(json.dumps(dict.fromkeys(NAMES, 20)))
        pack.run(inputs.arguments("other", "--variant", "feat_th0.2_max100_min10"))


def test_the_command_line(inputs: UniterInputs, capsys) -> None:
    base = inputs.write().arguments()
    for arguments, message in (
        (base[:5] + base[7:], "--tokenizer is needed"),
        (["uniter-lmdb", "--txt", str(inputs.txt), *base[3:]], "is not SPLIT=PATH"),
    ):
        with pytest.raises(SystemExit):
            pack.run(arguments)
        assert message in capsys.readouterr().err


def test_a_missing_package_names_the_extra(inputs: UniterInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    inputs.write()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"needs the package lmdb; run pip install 'tagsds\[lmdb\]'"):
        pack.run(inputs.arguments())
