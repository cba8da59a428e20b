"""Source `uniter-lmdb`: every published variant written, packed and read back equal; wrong files get one sentence."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
import published as pub
import pytest
import torch
from published import ID, META, ids_of
from tiny_inputs import load

from preprocess import build, pack
from preprocess.pieces import piece_spans, spell
from preprocess.shards import piece_problem
from preprocess.sources.lmdb_reader import RefusedError, decode_arrays
from preprocess.spans import find_spans
from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank
from tagsds.errors import UserError
from tagsds.files import sha256_of

NAMES = ("coco_train2014_000000000009.npz", "coco_train2014_000000000025.npz", "coco_train2014_000000000030.npz")
TREE = {
    "relation": [{"ids": [3, 4]}],
    "attribute": [{"ids": [1]}],
    "node": [{"ids": [1, 2]}, {"ids": [6]}],
}
CAPTIONS = {
    "7": {"input_ids": ids_of("a black cat sits on the mat ."), "tree": TREE},
    "8": {"input_ids": ids_of("a man rid ##ing a bike"), "tree": {"relation": [{"ids": [2, 3]}], "attribute": [], "node": []}},
    "5": {"input_ids": ids_of("the dog"), "raw": "WORDS THAT no tokenizer would split so", "tree": TREE | {"relation": [],
          "attribute": [], "node": [{"ids": [1]}]}},
    "6": {"input_ids": ids_of("a cat [UNK] ."), "tree": {"relation": [], "attribute": [], "node": []}},
}  # fmt: skip
IMAGES = {NAMES[1]: ["8", "7"], NAMES[0]: ["5"], NAMES[2]: ["6"]}
KEYS = [f"{int(name[-16:-4]):012d}" for name in IMAGES]


class Inputs:
    """A folder with a txt_db of three images and an img_db, to be changed before `arguments` is used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.txt, self.img, self.vocabulary = folder / "txt.db", folder / "img" / "coco_train2014", folder / "vocab.txt"
        self.arrays = {name: pub.image_arrays(seed) for seed, name in enumerate(NAMES)}

    def write(self, variant: str = "feat_th0.2_max100_min10", counts: dict | None = None, captions: dict | None = None) -> Inputs:
        pub.write_vocabulary(self.vocabulary)
        pub.write_txt_db(self.txt, CAPTIONS if captions is None else captions, IMAGES)
        self.write_images(variant, {name: self.value(variant, arrays) for name, arrays in self.arrays.items()})
        if counts is not None:
            (self.img / "nbb_th0.2_max100_min10.json").write_text(json.dumps(counts))
        return self

    def value(self, variant: str, arrays: dict) -> bytes:
        return (pub.npz_value if variant.endswith("_compressed") else pub.msgpack_value)(arrays)

    def write_images(self, variant: str, values: dict[str, bytes]) -> None:
        pub.write_img_db(self.img / variant, values)

    def arguments(self, out: str = "out", *more: str) -> list[str]:
        place = ["--img", str(self.img), "--tokenizer", str(self.vocabulary), "--out", str(self.folder / out)]
        return ["uniter-lmdb", "--txt", f"train={self.txt}", *place, "--workers", "1", "--spans", "rules", *more]


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


# --- what is read back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", ["", "_compressed"])
@pytest.mark.parametrize(
    ("variant", "counts", "kept"),
    [
        ("feat_th0.2_max100_min10", None, "all"),
        ("feat_th0.2_max100_min10", dict.fromkeys(NAMES, 12), 12),
        ("feat_numbb36", None, "all"),
        ("feat_numbb5", dict.fromkeys(NAMES, 12), 5),
        ("all", None, "by confidence"),
        ("all", dict.fromkeys(NAMES, 11), 11),
    ],
)
def test_every_variant_reads_back_equal(inputs: Inputs, variant: str, counts, kept, compressed: str) -> None:
    inputs.write(variant + compressed, counts)
    pack.run(inputs.arguments())
    samples = load(inputs.folder / "out", "train")
    assert list(samples) == KEYS  # the order of img2txts.json
    for name in NAMES:
        arrays, sample = inputs.arrays[name], samples[f"{int(name[-16:-4]):012d}"]
        n = {"all": 14, "by confidence": max(sum(float(c) > 0.2 for c in arrays["conf"]), 10)}.get(kept, kept)
        np.testing.assert_array_equal(sample["regions.npy"], arrays["features"][:n])
        np.testing.assert_array_equal(sample["boxes.npy"], arrays["norm_bb"][:n, :4].astype(np.float32))
        np.testing.assert_array_equal(sample["scores.npy"], arrays["conf"][:n])
        np.testing.assert_array_equal(sample["classes.npy"], arrays["soft_labels"][:n])
        assert len(sample["regions.npy"]) == n and sample["regions.npy"].dtype == np.float16
        assert [c["ids"] for c in sample["captions.json"]] == [CAPTIONS[c]["input_ids"] for c in IMAGES[name]]
        assert [c["id"] for c in sample["captions.json"]] == IMAGES[name]
    manifest = json.loads((inputs.folder / "out" / "manifest.json").read_text())
    assert (manifest["feature_dim"], manifest["num_classes"], manifest["vocab_size"]) == (16, 7, len(pub.VOCABULARY))
    assert manifest["imported_ids"] and manifest["boxes"] and manifest["max_caption_pieces"] == 10
    assert manifest["made_by"]["arguments"]["tokenizer_of_source"] == ["bert-tiny-cased"]
    assert "is sound" in verify_corpus(inputs.folder / "out")


def test_ids_and_trees_reach_the_bank_untouched(inputs: Inputs) -> None:
    inputs.write()
    pack.run(inputs.arguments())
    bank, _ = load_bank(inputs.folder / "out", "train")
    order = [c for ids in IMAGES.values() for c in ids]
    assert [bank.tokens[i].tolist() for i in range(4)] == [[2, *CAPTIONS[c]["input_ids"], 3] for c in order]
    assert bank.texts[:2] == ["a man riding a bike", "a black cat sits on the mat."]
    assert bank.texts[2:] == ["WORDS THAT no tokenizer would split so", "a cat [UNK]."]
    spans = [[tuple(row) for row in bank.spans[i].tolist()] for i in range(4)]
    assert spans[0] == [(0, 3), (0, 4)]  # riding, one behind for [CLS]
    # "black cat", "black", "sits on", "mat" by their first piece; where two begin together nodes come first
    assert spans[1] == [(0, 2), (0, 3), (1, 2), (2, 4), (2, 5), (3, 7)]
    assert spans[2:] == [[(0, 2)], []]
    kinds = [span["kind"] for span in load(inputs.folder / "out", "train")["000000000025"]["captions.json"][1]["spans"]]
    assert kinds == ["object", "attribute", "relation", "object"]
    assert bank.boxes.shape == (42, 4) and bank.classes is not None
    torch.testing.assert_close(bank.boxes[:14], torch.from_numpy(inputs.arrays[NAMES[1]]["norm_bb"][:, :4]).float())


def test_without_trees_the_rules_find_spans(inputs: Inputs, capsys) -> None:
    captions = {id_: {"input_ids": value["input_ids"]} for id_, value in CAPTIONS.items()}
    inputs.write(captions=captions)
    pack.run(inputs.arguments())
    assert "txt.db: no parse trees; spans come from rules on the spelt pieces." in capsys.readouterr().out
    spans = load(inputs.folder / "out", "train")["000000000025"]["captions.json"]
    assert [(s["kind"], s["pieces"]) for s in spans[0]["spans"]] == [("object", [1]), ("relation", [2, 3]), ("object", [5])]
    assert [(s["kind"], s["pieces"]) for s in spans[1]["spans"]] == [
        ("attribute", [1]), ("object", [2]), ("relation", [3, 4]), ("object", [6]),
    ]  # fmt: skip
    verify_corpus(inputs.folder / "out")


def test_spelling() -> None:
    assert spell("the man ' s skate ##board".split()) == (
        "the man's skateboard", [(0, 3), (4, 7), (7, 8), (8, 9), (10, 15), (15, 20)]
    )  # fmt: skip
    assert spell("a t - shirt , ' quoted '".split())[0] == "a t-shirt, ' quoted '"
    assert [s.pieces for s in piece_spans("a cat [UNK] dog".split(), find_spans)] == [(1,), (3,)]


def test_splits_of_several_databases(inputs: Inputs) -> None:
    """Two txt_db join one split in order, an image is looked for in every img_db."""
    inputs.write()
    second, images = inputs.folder / "second.db", inputs.folder / "img" / "flickr30k"
    pub.write_txt_db(second, {"20": {"input_ids": ids_of("a dog"), "tree": {}}}, {"flickr30k_000000000003.npz": ["20"]})
    pub.write_img_db(images / "all_compressed", {"flickr30k_000000000003.npz": pub.npz_value(pub.image_arrays(9))})
    base = inputs.arguments()
    base[2:3] = [f"train={second}", f"train={inputs.txt}"]
    pack.run([*base, "--img", str(images)])
    assert list(load(inputs.folder / "out", "train")) == ["flickr30k_000000000003", *KEYS]
    base[2:4] = [f"train={inputs.txt}", f"dev={second}"]
    with pytest.raises(UserError, match=r"made from other arguments or inputs"):
        pack.run([*base, "--img", str(images)])
    pack.run([*base, "--img", str(images), "--overwrite"])
    assert list(load(inputs.folder / "out", "dev")) == ["flickr30k_000000000003"]
    with pytest.raises(UserError, match=r"in 'train' already; give one of them"):
        pack.run(["uniter-lmdb", "--txt", f"train={inputs.txt}", f"dev={inputs.txt}", *inputs.arguments("twice")[3:]])


def test_txt2img_serves_where_img2txts_is_missing(inputs: Inputs) -> None:
    inputs.write()
    (inputs.txt / "img2txts.json").unlink()
    pack.run(inputs.arguments())
    assert list(load(inputs.folder / "out", "train")) == KEYS


def test_without_soft_labels(inputs: Inputs) -> None:
    inputs.write()
    pack.run(inputs.arguments("out", "--without-soft-labels"))
    assert "classes.npy" not in load(inputs.folder / "out", "train")[KEYS[0]]
    verify_corpus(inputs.folder / "out")


def test_long_captions(inputs: Inputs) -> None:
    """A limit of 7 leaves 5 pieces beside [CLS] and [SEP]; two captions have more."""
    inputs.write()
    with pytest.raises(UserError, match=r"caption 8 of image 0+25 has 8 word pieces, the limit is 7"):
        pack.run(inputs.arguments("error", "--max-caption-pieces", "7"))
    pack.run(inputs.arguments("cut", "--max-caption-pieces", "7", "--long-captions", "truncate"))
    captions = load(inputs.folder / "cut", "train")["000000000025"]["captions.json"]
    assert captions[1]["ids"] == ids_of("a black cat sits on") and captions[1]["text"] == "a black cat sits on"
    assert [s["pieces"] for s in captions[1]["spans"]] == [[1, 2], [1], [3, 4]]
    verify_corpus(inputs.folder / "cut")
    pack.run(inputs.arguments("drop", "--max-caption-pieces", "7", "--long-captions", "drop"))
    assert list(load(inputs.folder / "drop", "train")) == [KEYS[1], KEYS[2]]
    verify_corpus(inputs.folder / "drop")


def test_workers_and_a_broken_run_change_no_byte(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs.write()
    pack.run(inputs.arguments("one", "--shard-size", "1"))
    two = inputs.arguments("two", "--shard-size", "1")
    two[two.index("--workers") + 1] = "2"
    pack.run(two)
    whole = build.Packer.pack

    def dies(self: build.Packer, job: build.Job):
        if job.file == "train-000001.tar":
            raise OSError("disk full")
        return whole(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(build.Packer, "pack", dies)
        with pytest.raises(OSError, match=r"disk full"):
            pack.run(inputs.arguments("three", "--shard-size", "1"))
    pack.run(inputs.arguments("three", "--shard-size", "1"))
    assert contents(inputs.folder / "one") == contents(inputs.folder / "two") == contents(inputs.folder / "three")


# --- what is refused ------------------------------------------------------------------------------------------------


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
def test_no_pickle_is_ever_loaded(inputs: Inputs, kind: str) -> None:
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


def test_a_pickle_in_the_text_database(inputs: Inputs) -> None:
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
def test_a_truncated_database(inputs: Inputs, keep: int, which: str) -> None:
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
def test_a_vocabulary_that_does_not_fit(inputs: Inputs, change: dict, match: str) -> None:
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
def test_a_wrong_caption(inputs: Inputs, value: dict, match: str) -> None:
    inputs.write(captions=CAPTIONS | {"7": value})
    with pytest.raises(UserError, match=match):
        pack.run(inputs.arguments())


def change_of(name: str, change):
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
def test_a_wrong_image(inputs: Inputs, change, match: str) -> None:
    inputs.write()
    value = pub.msgpack_value(change(inputs.arrays[NAMES[1]]))
    inputs.write_images("feat_th0.2_max100_min10", {NAMES[1]: value})
    with pytest.raises(UserError, match=match):
        pack.run(inputs.arguments())


def test_rounding_over_the_border_is_clipped(inputs: Inputs) -> None:
    inputs.arrays[NAMES[1]] = change_of("norm_bb", lambda a: a.__setitem__((0, 2), 1.001))(inputs.arrays[NAMES[1]])
    inputs.write()
    pack.run(inputs.arguments())
    assert load(inputs.folder / "out", "train")[KEYS[0]]["boxes.npy"][0, 2] == 1.0


@pytest.mark.parametrize("cut", [1, 40, 200])
@pytest.mark.parametrize("kind", ["npz", "msgpack"])
def test_a_damaged_value_is_refused(kind: str, cut: int) -> None:
    value = {"npz": pub.npz_value, "msgpack": pub.msgpack_value}[kind](pub.image_arrays(1))
    with pytest.raises(RefusedError):
        decode_arrays(value[:-cut], ("features", "norm_bb"))


def test_folders_that_need_a_choice(inputs: Inputs) -> None:
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


def test_the_command_line(inputs: Inputs, capsys) -> None:
    base = inputs.write().arguments()
    for arguments, message in (
        (base[:5] + base[7:], "--tokenizer is needed"),
        (["uniter-lmdb", "--txt", str(inputs.txt), *base[3:]], "is not SPLIT=PATH"),
    ):
        with pytest.raises(SystemExit):
            pack.run(arguments)
        assert message in capsys.readouterr().err


def test_a_missing_package_names_the_extra(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    inputs.write()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"needs the package lmdb; run pip install 'tagsds\[lmdb\]'"):
        pack.run(inputs.arguments())


def test_verify_looks_at_imported_pieces(inputs: Inputs) -> None:
    inputs.write()
    pack.run(inputs.arguments())
    path = inputs.folder / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"imported_ids": False}))
    with pytest.raises(UserError, match=r"caption 8: ids are there against the manifest"):
        verify_corpus(inputs.folder / "out")
    path.write_text(json.dumps(manifest | {"boxes": False}))
    with pytest.raises(UserError, match=r"has boxes.npy against the manifest"):
        verify_corpus(inputs.folder / "out")
    assert piece_problem([6, 7], [{"kind": "object", "pieces": [0, 1]}], 26) is None
    assert piece_problem([6, 26], [], 26) is not None
    for pieces in ([2], [-1], [1, 0], [], None):
        assert piece_problem([6, 7], [{"kind": "object", "pieces": pieces}], 26) is not None
    assert ID["a"] == 6
