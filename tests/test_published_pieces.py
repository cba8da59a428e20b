"""Published pieces together: features, vocabularies and checkpoints in the layouts of others, packed, encoded and evaluated."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from preprocess import pack
from tagsds import evaluate
from tagsds.data.pairs import Pairs
from tagsds.data.shards import load_bank
from tagsds.models import convert
from tagsds.models.load import load_model
from tagsds.models.published.files import write_published
from tagsds.models.uniter import Layout
from tests.models import published_matchers as matchers
from tests.models import published_uniter as theirs

SENTENCES = ["A street with cars.", "Two people, riding horses!", "An unfathomably antediluvian contraption"]


def test_ten_real_images_are_packed_and_encoded(shared_data, tmp_path):
    """Every pair of ten images and thirty captions: the scores are those of the formulas on the arrays of the shards."""
    tsv = shared_data / "butd_regions" / "train2014_obj36.tsv"
    vocabulary = shared_data / "bert_vocab" / "bert-base-uncased-vocab.txt"
    names = [line.split(b"\t", 1)[0].decode() for line in tsv.read_bytes().splitlines()]
    images = [
        {
            "cocoid": int(name[-12:]),
            "filename": f"{name}.jpg",
            "split": "train",
            "sentences": [{"raw": text, "sentid": 3 * i + k} for k, text in enumerate(SENTENCES)],
        }
        for i, name in enumerate(names)
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    pack.run(["butd-tsv", "--tsv", str(tsv), "--split", f"{tmp_path}/k.json", "--select", "fixed36", "--tokenizer", str(vocabulary),
              "--out", f"{tmp_path}/shards", "--workers", "1", "--spans", "rules"])  # fmt: skip

    pieces = len(vocabulary.read_text().splitlines())
    assert pieces == 30522
    state = theirs.state_dict(std=0.1, vocab=pieces, width=64, layers=3, inner=96, positions=40, region_dim=2048, classes=7)
    write_published(tmp_path / "uniter.pt", state)
    convert.run([f"{tmp_path}/uniter.pt", "--tokenizer", str(vocabulary), "--out", f"{tmp_path}/uniter"])
    model = load_model(tmp_path / "uniter")

    bank, manifest = load_bank(tmp_path / "shards", "train")
    assert (manifest.feature_dim, manifest.vocab_size, bank.num_images, bank.num_captions) == (2048, pieces, 10, 30)
    captions, picked = torch.arange(3), torch.arange(10)
    text_of_pair, image_of_pair = (part.flatten() for part in torch.meshgrid(captions, picked, indexing="ij"))
    table = bank.image_table(picked)
    pairs = Pairs(bank.text_table(captions), table, text_of_pair, image_of_pair)
    with torch.no_grad():
        scores = model.score(model(pairs, keep=Layout.of(pairs).cls()))
        for p, (text, image) in enumerate(zip(text_of_pair.tolist(), image_of_pair.tolist())):
            features, boxes = bank.regions[image].float(), bank.boxes[36 * image : 36 * image + 36]
            assert features.shape == (36, 2048) and np.ptp(features.numpy()) > 1
            nothing = torch.zeros(36, dtype=torch.bool)
            wanted = theirs.forward(state, bank.tokens[text].long(), features, boxes, nothing, heads=1)
            assert float(scores[p]) == pytest.approx(float(wanted["rank"]), abs=1e-4)
    assert scores.std() > 1e-3


def test_scans_arrays_words_and_checkpoint_give_the_released_codes_recalls(tmp_path):
    """SCAN's three kinds of files go in; the ranks that come out are those of its formulas on its own ids."""
    rng = np.random.default_rng(3)
    words = ["<pad>", "<start>", "<end>", "<unk>", *(f"word{i}" for i in range(matchers.VOCAB - 4))]
    folder = tmp_path / "precomp"
    folder.mkdir()
    features = rng.standard_normal((8, 36, matchers.REGION)).astype(np.float16).astype(np.float32)
    np.save(folder / "test_ims.npy", features)
    said = [[words[i] for i in rng.integers(4, len(words), int(rng.integers(2, 9)))] for _ in range(40)]
    (folder / "test_caps.txt").write_text("".join(f"{' '.join(caption).capitalize()}.\n" for caption in said))
    (tmp_path / "vocab.json").write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(words)}}))
    write_published(tmp_path / "scan.tar", matchers.checkpoint("scan", cross_attn="t2i", agg_func="LogSumExp"))
    convert.run([f"{tmp_path}/scan.tar", "--vocabulary", f"{tmp_path}/vocab.json", "--out", f"{tmp_path}/scan"])
    shards = f"{tmp_path}/shards"
    pack.run(["scan-npy", "--folder", str(folder), "--tokenizer", f"{tmp_path}/scan", "--out", shards, "--workers", "1"])
    evaluate.main(["--checkpoint", f"{tmp_path}/scan", "--data", shards, "--split", "test"])

    image, text = matchers.halves("scan")
    options = matchers.OPTIONS["scan"] | {"cross_attn": "t2i", "agg_func": "LogSumExp"}
    rows = []
    for caption in said:  # the full stop is a word that the list lacks
        ids = torch.tensor([1, *(words.index(word) for word in caption), 3, 2])
        rows.append([float(matchers.scan(image, text, torch.from_numpy(f), ids, options)) for f in features])
    scores = torch.tensor(rows)  # [captions, images]
    true = torch.arange(40) // 5
    image_rank = 1 + (scores >= scores.gather(1, true[:, None])).sum(dim=1) - 1
    best = torch.stack([scores[5 * i : 5 * i + 5, i].max() for i in range(8)])
    text_rank = torch.tensor([1 + int((scores[true != i, i] >= best[i]).sum()) for i in range(8)])
    found = json.loads((tmp_path / "results-test.json").read_text())["recalls"]
    for k in (1, 5, 10):
        assert found[f"image_r{k}"] == pytest.approx(100 * float((image_rank <= k).float().mean()))
        assert found[f"text_r{k}"] == pytest.approx(100 * float((text_rank <= k).float().mean()))
    assert 0 < found["image_r1"] < 100
