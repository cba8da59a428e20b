"""Source `uniter-lmdb`: every published variant written, packed and read back equal."""

from __future__ import annotations

import json

import numpy as np
import published as pub
import pytest
import torch
from published import ID, ids_of
from tiny_inputs import contents, load
from uniter_inputs import CAPTIONS, IMAGES, KEYS, NAMES, UniterInputs

from preprocess import build, pack
from preprocess.pieces import piece_spans, spell
from preprocess.shards import piece_problem
from preprocess.spans import find_spans
from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank
from tagsds.errors import UserError


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
def test_every_variant_reads_back_equal(inputs: UniterInputs, variant: str, counts, kept, compressed: str) -> None:
    inputs.write(variant + compressed, counts)
    pack.run(inputs.arguments())
    samples = load(inputs.folder / "out", "train")
    assert list(samples) == KEYS  # the order of img2txts.json
    for name in NAMES:
        arrays, sample = inputs.arrays[name], samples[f"{int(name[-16:-4]):012d}"]
        n = {"all": 14, "by confidence": max(sum(float(c) > 0.2 for c in arrays["conf"]), 10)}.get(kept, kept)
        np.testing.assert_array_equal(sample["regions.npy"], arrays["features"][:n])
        np.testing.assert_array_equal(sample["boxes.npy"], arrays["norm_bb"][:n, :4].astype(np.float32))
        np.testing.assert_array_equal(sample["classes.npy"], arrays["soft_labels"][:n])
        assert len(sample["regions.npy"]) == n and sample["regions.npy"].dtype == np.float16
        assert [c["ids"] for c in sample["captions.json"]] == [CAPTIONS[c]["input_ids"] for c in IMAGES[name]]
        assert [c["id"] for c in sample["captions.json"]] == IMAGES[name]
    manifest = json.loads((inputs.folder / "out" / "manifest.json").read_text())
    assert (manifest["feature_dim"], manifest["num_classes"], manifest["vocab_size"]) == (16, 7, len(pub.VOCABULARY))
    assert manifest["background_class"] is True  # UNITER's column 0
    assert manifest["imported_ids"] and manifest["boxes"] and manifest["max_caption_pieces"] == 10
    assert manifest["made_by"]["arguments"]["tokenizer_of_source"] == ["bert-tiny-cased"]
    assert "is sound" in verify_corpus(inputs.folder / "out")


def test_ids_and_trees_reach_the_bank_untouched(inputs: UniterInputs) -> None:
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


def test_without_trees_the_rules_find_spans(inputs: UniterInputs, capsys) -> None:
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


def test_splits_of_several_databases(inputs: UniterInputs) -> None:
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


def test_txt2img_serves_where_img2txts_is_missing(inputs: UniterInputs) -> None:
    inputs.write()
    (inputs.txt / "img2txts.json").unlink()
    pack.run(inputs.arguments())
    assert list(load(inputs.folder / "out", "train")) == KEYS


def test_a_node_without_ids_is_skipped(inputs: UniterInputs) -> None:
    """TAGS' trees hold nodes that no word piece stands for; an empty list says the same."""
    bare = {"relation": [{"ids": [3, 4]}, {"name": "on"}], "attribute": [{}], "node": [{"ids": [1, 2]}, {"ids": None}, {"ids": []}]}
    inputs.write(captions=CAPTIONS | {"7": CAPTIONS["7"] | {"tree": bare}})
    pack.run(inputs.arguments())
    captions = load(inputs.folder / "out", "train")[KEYS[0]]["captions.json"]
    assert captions[1]["id"] == "7"
    assert captions[1]["spans"] == [{"kind": "object", "pieces": [1, 2]}, {"kind": "relation", "pieces": [3, 4]}]
    verify_corpus(inputs.folder / "out")


def test_without_soft_labels(inputs: UniterInputs) -> None:
    inputs.write()
    pack.run(inputs.arguments("out", "--without-soft-labels"))
    assert "classes.npy" not in load(inputs.folder / "out", "train")[KEYS[0]]
    assert json.loads((inputs.folder / "out" / "manifest.json").read_text())["background_class"] is False
    verify_corpus(inputs.folder / "out")


def test_long_captions(inputs: UniterInputs) -> None:
    """A limit of 7 leaves 5 pieces beside [CLS] and [SEP]; two captions have more."""
    inputs.write()
    with pytest.raises(UserError, match=r"caption 8 of image 0+25 has 8 word pieces, the limit of split 'train' is 7"):
        pack.run(inputs.arguments("error", "--max-caption-pieces", "7"))
    pack.run(inputs.arguments("cut", "--max-caption-pieces", "7", "--long-captions", "truncate"))
    captions = load(inputs.folder / "cut", "train")["000000000025"]["captions.json"]
    assert captions[1]["ids"] == ids_of("a black cat sits on") and captions[1]["text"] == "a black cat sits on"
    assert [s["pieces"] for s in captions[1]["spans"]] == [[1, 2], [1], [3, 4]]
    verify_corpus(inputs.folder / "cut")
    pack.run(inputs.arguments("drop", "--max-caption-pieces", "7", "--long-captions", "drop"))
    assert list(load(inputs.folder / "drop", "train")) == [KEYS[1], KEYS[2]]
    verify_corpus(inputs.folder / "drop")


def test_workers_and_a_broken_run_change_no_byte(inputs: UniterInputs, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_rounding_over_the_border_is_clipped(inputs: UniterInputs) -> None:
    inputs.arrays[NAMES[1]]["norm_bb"][0, 2] = 1.001
    inputs.write()
    pack.run(inputs.arguments())
    assert load(inputs.folder / "out", "train")[KEYS[0]]["boxes.npy"][0, 2] == 1.0


def test_verify_looks_at_imported_pieces(inputs: UniterInputs) -> None:
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
