"""The word vocabularies of the matchers' repositories (VSE++'s format) as tokenizers, so that ids here are ids there.

Captions there are lower-cased and split by NLTK's `word_tokenize`: Treebank rules in each sentence. The rules are spelt here for
`tokenizers`, which also gives the characters of every word. A full stop before a blank ends
a sentence, unless an abbreviation such as u.s. or st. stands before it.
"""

from __future__ import annotations

import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tagsds.errors import UserError, first_line
from tagsds.files import read_bytes, read_json_object

SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
OPENING = r"""(?:(?<=^)|(?<=[ (\[{<]))\""""
SPLITS = (
    r"(?<=[^.])(?<!\.\w)(?<!\b(?:mr|dr|st|jr))(?<!\bmrs)\.(?=[\])}>\"'»”’ ]*\s)|(?<=[^.])\.(?=[\])}>\"'»”’ ]*$)",  # ends a sentence
    r"``|''|--|\.{2,}|[;@#$%&?!*\[\](){}<>«»“”‘„]",
    r"[:,](?!\d)",
)
ENDS = (r"(?<=.)(?:'s|'m|'d|'ll|'re|'ve|n't)$", r"(?<=[^'])'$", r"^'(?!(?:re|ve|ll|m|t|s|d|n)$)(?=\w)")
HALVES = r"^(?:can(?=not$)|gim(?=me$)|gon(?=na$)|got(?=ta$)|lem(?=me$)|wan(?=na$))"


class Words:
    """Stands for the class `Vocabulary` of those repositories when its pickle is read: attributes and nothing else."""


class _WordsOnly(pickle._Unpickler):
    """Knows one class, and makes an inert object of it; any other name in the file is refused. The unpickler written in Python: the
    one in C takes as much memory as the file's largest memo number asks for, and a flipped bit there is gigabytes."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "Vocabulary":
            return Words
        if (module, name) in (("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor")):
            return lambda *_: Words()
        if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
            return object
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_words(path: Path) -> list[str]:
    """Words by id, from SCAN's JSON (word2idx) or a pickled Vocabulary (read without running anything in it)."""
    if path.suffix == ".json":
        ids = read_json_object(path).get("word2idx")
    else:
        try:
            ids = getattr(_WordsOnly(BytesIO(read_bytes(path)), encoding="utf-8").load(), "word2idx", None)
        except UserError:
            raise
        except pickle.UnpicklingError as error:
            reason = f"holds more than words ('{first_line(error)}')"
            raise UserError(f"{path} {reason} and was not read; give its word2idx as JSON.") from error
        except Exception as error:  # a broken pickle fails in any way
            raise UserError(f"{path} is no whole pickle of a Vocabulary ({first_line(error)}); copy it again.") from error
    if not isinstance(ids, dict) or not numbers_from_zero(list(ids.values())) or not all(isinstance(word, str) for word in ids):
        raise UserError(f"{path} has no word2idx that numbers its words from 0; give the vocabulary of the checkpoint.")
    words = sorted(ids, key=ids.__getitem__)
    if missing := [word for word in SPECIAL if word not in ids]:
        raise UserError(f"{path} lacks {', '.join(missing)}; give the vocabulary of the checkpoint.")
    return words


def numbers_from_zero(ids: list[Any]) -> bool:
    """Whether these are 0, 1, 2, ... in any order."""
    return all(type(number) is int for number in ids) and sorted(ids) == list(range(len(ids)))


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """Lower-cased words between <start> and <end>; what is unknown is <unk>, which also stands for the mask that is never used."""
    ids = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([
        normalizers.Lowercase(),
        normalizers.Replace(Regex(OPENING), " `` "),
        normalizers.Replace('"', " '' "),
    ])  # fmt: skip
    whole = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (*ENDS, HALVES)]
    backend.pre_tokenizer = pre_tokenizers.Sequence([whole[0], pre_tokenizers.WhitespaceSplit(), *whole[1:], *parts])
    backend.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[(token, ids[token]) for token in ("<start>", "<end>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", cls_token="<start>", sep_token="<end>", unk_token="<unk>", mask_token="<unk>"
    )
