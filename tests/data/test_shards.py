"""Shards to bank: what is loaded, and one clear sentence for each thing that can be wrong with a shard."""

import hashlib
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch

from preprocess.verify import verify_corpus
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import load_tokenizer
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tests.data.corpus import write_corpus


@pytest.fixture(scope="module")
def train(world):
    return load_bank(world, "train")[0]


def members_of(path):
    """[(name, bytes)] in the order of the tar, read without webdataset."""
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def captions_of(path):
    return [json.loads(data) for name, data in members_of(path) if name.endswith(".captions.json")]


@pytest.fixture
def corpus(world, tmp_path):
    """A copy to tamper with."""
    return shutil.copytree(world, tmp_path / "corpus")


def rewrite(folder, change, shard=0, split="dev"):
    """Pass each member through `change(name, data) -> data or None (leave it out)` and mend size and checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    line = manifest["splits"][split]["shards"][shard]
    path = folder / line["file"]
    members = [(name, change(name, data)) for name, data in members_of(path)]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    line["bytes"], line["sha256"] = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return path


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# --- what is loaded ------------------------------------------------------------------------------------------------


def test_counts_and_order(world, train):
    members = [entry for number in range(2) for entry in members_of(world / f"train-{number:06d}.tar")]
    keys = [name.split(".")[0] for name, _ in members if name.endswith("regions.npy")]
    regions = [np.load(io.BytesIO(data)) for name, data in members if name.endswith("regions.npy")]
    boxes = [np.load(io.BytesIO(data)) for name, data in members if name.endswith("boxes.npy")]
    captions = [json.loads(data) for name, data in members if name.endswith("captions.json")]
    assert train.num_images == len(keys) == 60
    assert train.num_captions == sum(len(c) for c in captions) == 300
    assert train.keys == keys
    assert train.texts == [c["text"] for image in captions for c in image]
    assert train.image_of_caption.tolist() == [i for i, image in enumerate(captions) for _ in image]
    at = 0
    for image, (feature, box) in enumerate(zip(regions, boxes)):
        assert np.array_equal(train.regions[image].numpy(), feature)
        assert np.array_equal(train.boxes[at : at + len(box)].numpy(), box)
        own = train.captions_of_image[image].tolist()
        assert [train.texts[c] for c in own] == [c["text"] for c in captions[image]]
        at += len(box)
    assert train.regions.values.dtype == torch.float16
    assert train.classes is not None and train.classes.shape == (len(train.boxes), 64)


def test_tokens_decode_back_to_the_text(world, train):
    tokenizer = load_tokenizer(world / "tokenizer")
    for caption, text in enumerate(train.texts):
        ids = train.tokens[caption].tolist()
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        decoded = tokenizer.decode(ids[1:-1])
        assert decoded.replace(" ", "") == text.lower().replace(" ", "")


def test_spans_point_at_the_pieces_that_spell_them(world, train):
    tokenizer = load_tokenizer(world / "tokenizer")
    spans = [span for number in range(2) for image in captions_of(world / f"train-{number:06d}.tar") for span in image]
    pieces = 0
    for caption, entry in enumerate(spans):
        rows = train.spans[caption].tolist()
        words = tokenizer.convert_ids_to_tokens(train.tokens[caption].tolist())
        assert len(entry["spans"]) > 0
        for number, span in enumerate(entry["spans"]):
            spelt = "".join(words[position].removeprefix("##") for n, position in rows if n == number)
            written = "".join(entry["text"][a:b] for a, b in span["chars"])
            assert spelt == written.lower().replace(" ", ""), (entry["text"], span)
            pieces += len([n for n, _ in rows if n == number])
        assert {n for n, _ in rows} == set(range(len(entry["spans"])))
    assert pieces == len(train.spans.values)


@pytest.mark.parametrize("first", [1, 29, 30, 31, 60, 1000])
def test_first_images_only(world, train, first):
    bank, _ = load_bank(world, "train", first=first)
    count = min(first, 60)
    assert bank.keys == train.keys[:count]
    assert bank.texts == train.texts[: 5 * count]
    assert torch.equal(bank.tokens.values, train.tokens.values[: len(bank.tokens.values)])
    assert torch.equal(bank.regions.values, train.regions.values[: len(bank.regions.values)])
    assert bank.captions_of_image.lengths.tolist() == [5] * count


def test_tables_of_the_bank(train):
    table = train.text_table(torch.tensor([7, 0, 7]))
    assert table.values.dtype == torch.int64
    assert [table[i].tolist() for i in range(3)] == [train.tokens[c].tolist() for c in (7, 0, 7)]
    images = train.image_table(torch.tensor([5, 2]))
    starts = [0, *np.cumsum([len(train.regions[i]) for i in range(6)]).tolist()]
    expected = torch.cat([train.boxes[starts[5] : starts[6]], train.boxes[starts[2] : starts[3]]])
    assert torch.equal(images.regions.values, torch.cat([train.regions[5], train.regions[2]]))
    for row, (x1, y1, x2, y2) in zip(images.geometry.tolist(), expected.tolist()):
        assert row == pytest.approx([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], abs=1e-6)


def test_soft_labels_only_where_they_are_wanted(world, train):
    bank, manifest = load_bank(world, "train", classes=False)
    assert bank.classes is None and train.classes.shape == (len(train.boxes), manifest.num_classes)
    assert torch.equal(bank.regions.values, train.regions.values)


# --- what can be wrong ---------------------------------------------------------------------------------------------


def test_missing_manifest(tmp_path):
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert str(tmp_path / "manifest.json") in one_sentence(error) and "tagsds-pack" in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"feature_dim": 3}'])
def test_broken_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_manifest(tmp_path)
    assert str(tmp_path / "manifest.json") in one_sentence(error) and "pack the corpus again" in str(error.value)


def test_unknown_split_names_the_nearest(world):
    with pytest.raises(UserError) as error:
        load_bank(world, "trian")
    assert "'trian'" in str(error.value) and "did you mean 'train'" in str(error.value)
    with pytest.raises(UserError) as error:
        load_bank(world, "xyz")
    assert "known: dev, test, train." in one_sentence(error)


def test_missing_shard(corpus):
    (corpus / "dev-000000.tar").unlink()
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert str(corpus / "dev-000000.tar") in one_sentence(error)


def test_truncated_shard(corpus):
    path = corpus / "dev-000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev", checksum=False)
    text = one_sentence(error)
    assert str(path) in text and str(size) in text and str(size // 2) in text and "copy it again" in text


def test_wrong_checksum(corpus):
    path = corpus / "dev-000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert str(path) in one_sentence(error) and "sha256" in str(error.value)


def test_no_tokenizer(corpus):
    (corpus / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert str(corpus / "tokenizer") in one_sentence(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers(corpus, value):
    def change(name, data):
        if name != "dev-000002.regions.npy":
            return data
        array = np.load(io.BytesIO(data))
        array[1, 5] = value
        return npy(array)

    path = rewrite(corpus, change)
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    text = one_sentence(error)
    assert str(path) in text and "dev-000002" in text and "regions.npy" in text and "extract" in text


@pytest.mark.parametrize("shape", [(3, 191), (0, 192), (192,)])
def test_features_of_the_wrong_shape(corpus, shape):
    path = rewrite(corpus, lambda name, d: npy(np.zeros(shape, np.float16)) if name == "dev-000004.regions.npy" else d)
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert str(path) in str(error.value) and "dev-000004" in str(error.value) and "192" in one_sentence(error)


@pytest.mark.parametrize("member", ["regions.npy", "boxes.npy", "classes.npy", "captions.json"])
def test_missing_member(corpus, member):
    path = rewrite(corpus, lambda name, data: None if name == f"dev-000003.{member}" else data)
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    text = one_sentence(error)
    assert str(path) in text and "dev-000003" in text and member in text


@pytest.mark.parametrize("member", ["boxes.npy", "classes.npy"])
def test_rows_that_do_not_belong_together(corpus, member):
    """One box (or soft label) too few: everything behind would slip by a row."""
    rewrite(corpus, lambda name, d: npy(np.load(io.BytesIO(d))[:-1]) if name == f"dev-000001.{member}" else d)
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert "dev-000001" in one_sentence(error) and member in str(error.value)


def test_boxes_that_are_no_numbers(corpus):
    def change(name, data):
        return npy(np.full_like(np.load(io.BytesIO(data)), np.nan)) if name == "dev-000001.boxes.npy" else data

    rewrite(corpus, change)
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert "dev-000001" in one_sentence(error) and "boxes.npy" in str(error.value)


def test_a_broken_array(corpus):
    rewrite(corpus, lambda name, data: data[:40] if name == "dev-000001.regions.npy" else data)
    with pytest.raises(UserError) as error:
        load_bank(corpus, "dev")
    assert "dev-000001" in one_sentence(error)


# --- what older corpora hold ---------------------------------------------------------------------------------------


def test_a_corpus_that_still_holds_confidences(tmp_path):
    """`scores.npy` is no longer written, since nothing reads it; shards that have it are sound and load."""
    folder = write_corpus(tmp_path / "corpus", {"dev": 6}, classes=4)
    expected = load_bank(folder, "dev", cache="none")[0]
    path = folder / "dev-000000.tar"
    assert not any(name.endswith("scores.npy") for name, _ in members_of(path))
    with tarfile.open(path, "a") as tar:  # of the shard's last image, whose members end the tar
        n = int(expected.regions.lengths[3])
        data = npy(np.linspace(0.9, 0.3, n).astype(np.float16))
        info = tarfile.TarInfo("dev-0000003.scores.npy")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    rewrite(folder, lambda name, data: data)
    assert any(name.endswith("scores.npy") for name, _ in members_of(path))
    assert "is sound" in verify_corpus(folder)
    bank, _ = load_bank(folder, "dev")
    assert bank.texts == expected.texts and torch.equal(bank.regions.values, expected.regions.values)
