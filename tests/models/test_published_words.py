"""Words of the matchers' vocabularies: their ids are those of NLTK's word_tokenize, which the released code used."""

import json
import os
import pickle

import pytest

from tagsds.errors import UserError
from tagsds.models.published.words import SPECIAL, read_words, word_tokenizer

CASES = {
    "A man's dog isn't eating.": ["a", "man", "'s", "dog", "is", "n't", "eating", "."],
    "Two dogs, a cat, and 1,000 birds": ["two", "dogs", ",", "a", "cat", ",", "and", "1,000", "birds"],
    'A sign that says "stop" on it.': ["a", "sign", "that", "says", "``", "stop", "''", "on", "it", "."],
    "A close-up of food (mostly meat); yum!": ["a", "close-up", "of", "food", "(", "mostly", "meat", ")", ";", "yum", "!"],
    "The U.S. flag at 3:30 p.m": ["the", "u.s.", "flag", "at", "3:30", "p.m"],
    "They cannot see -- they're gonna wait...": ["they", "can", "not", "see", "--", "they", "'re", "gon", "na", "wait", "..."],
    "The girls' bikes": ["the", "girls", "'", "bikes"],
    "A man. He runs.": ["a", "man", ".", "he", "runs", "."],
}


def tokens_of(text):
    """Through the pre-tokeniser alone: what the words are, whichever are known."""
    backend = word_tokenizer(list(SPECIAL)).backend_tokenizer
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]


@pytest.mark.parametrize("text", list(CASES))
def test_words_by_hand(text):
    assert tokens_of(text) == CASES[text]


def test_words_are_nltks():
    """One sentence at a time, which needs no data of NLTK's; on captions as people write them."""
    tokenizer = pytest.importorskip("nltk.tokenize", reason="nltk is not installed").NLTKWordTokenizer()
    captions = [
        "There is a man in a blue t-shirt & jeans standing at the corner of 5th Ave.",
        "A woman who's holding an umbrella, a purse and a child's hand.",
        "I don't know what this is, but it's $5 [or so].",
        "people sitting @ a table: drinking, eating and talking!",
        "A plate with 2/3 of a pizza; no-one's eating it?",
        "Signs reading 'stop' and \"go\" hang over the street",
        "a black-and-white photo of the 1950's kitchen",
        "Man w/ a tennis racket about to hit the ball (he'll miss).",
        "  A   very  spaced-out    caption . ",
        "You can't see the o'clock tower, we'd say; they've left.",
    ]
    for caption in captions:
        assert tokens_of(caption) == tokenizer.tokenize(caption.lower().strip()), caption


def test_words_of_real_captions_are_nltks(shared_data):
    """NLTK's tokenizer takes one sentence; captions of several are left to the cases above."""
    tokenizer = pytest.importorskip("nltk.tokenize", reason="nltk is not installed").NLTKWordTokenizer()
    captions = [
        a["caption"].strip()
        for a in json.loads((shared_data / "coco_val2017" / "captions_val2017.json").read_text())["annotations"][:5000]
    ]
    single = [c for c in captions if ". " not in c]
    assert len(single) > 4500
    different = [c for c in single if tokens_of(c) != tokenizer.tokenize(c.lower())]
    assert len(different) <= len(single) // 1000, different[:5]


def vocabulary_file(tmp_path, words):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"word2idx": {w: i for i, w in enumerate(words)}, "idx2word": {}, "idx": len(words)}))
    return path


def test_ids_and_characters(tmp_path):
    words = [*SPECIAL, "a", "dog", "'s", "ball", "."]
    tokenizer = word_tokenizer(read_words(vocabulary_file(tmp_path, words)))
    found = tokenizer("A dog's red ball.", return_offsets_mapping=True)
    assert found["input_ids"] == [1, 4, 5, 6, 3, 7, 8, 2]
    assert found["offset_mapping"][1:-1] == [(0, 1), (2, 5), (5, 7), (8, 11), (12, 16), (16, 17)]
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id) == (0, 1, 2, 3)
    assert len(tokenizer) == len(words)


def test_the_tokenizer_packs_a_corpus_and_survives_saving(tmp_path):
    from tagsds.data.vocabulary import Vocabulary
    from tagsds.data.wordpiece import wordpiece_tokenizer

    words = [*SPECIAL, "a", "dog"]
    word_tokenizer(words).save_pretrained(tmp_path)
    loaded = wordpiece_tokenizer(str(tmp_path))
    assert loaded("a dog")["input_ids"] == [1, 4, 5, 2] and Vocabulary.of(loaded).size == 6


class Vocabulary:
    """Of the released code, as its pickles name it."""

    def __init__(self, words):
        self.word2idx = {word: number for number, word in enumerate(words)}
        self.idx2word = dict(enumerate(words))
        self.idx = len(words)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_pickled_vocabulary_is_read_without_its_class(tmp_path, protocol):
    words = [*SPECIAL, "a", "dog"]
    path = tmp_path / "coco_precomp_vocab.pkl"
    Vocabulary.__module__ = "vocab"
    try:
        import sys
        import types

        sys.modules["vocab"] = types.ModuleType("vocab")
        sys.modules["vocab"].Vocabulary = Vocabulary
        path.write_bytes(pickle.dumps(Vocabulary(words), protocol=protocol))
    finally:
        del sys.modules["vocab"]
        Vocabulary.__module__ = __name__
    assert read_words(path) == words


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(UserError, match=r"vocab.pkl holds more than words \('(posix|nt).system'\) and was not read"):
        read_words(path)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "no word2idx"),
        ('{"word2idx": {"<pad>": 0, "<start>": 2}}', "numbers its words from 0"),
        ('{"word2idx": {"<pad>": 0, "a": 1}}', "lacks <start>, <end>, <unk>"),
        ("[1]", "a JSON list, not an object"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_file_that_is_no_vocabulary(tmp_path, text, sentence):
    path = tmp_path / "vocab.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_words(path)
