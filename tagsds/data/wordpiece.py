"""A WordPiece tokenizer from what the user has: a name, a folder or a vocab.txt."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tagsds.data.vocabulary import working_tokenizer
from tagsds.errors import UserError
from tagsds.files import read_text

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def build_tokenizer(vocabulary: list[str]) -> PreTrainedTokenizerFast:
    """A BERT WordPiece tokenizer over the given pieces; ids are positions in the list. It lower-cases unless a piece besides the
    special ones has a capital."""
    lowercase = all(piece == piece.lower() for piece in vocabulary if not piece.startswith("["))
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def wordpiece_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """From a vocab.txt, a folder written by save_pretrained, or a name that transformers can resolve."""
    path = Path(name)
    if path.is_file():
        vocabulary = read_text(path, "give a vocab.txt of WordPieces").split("\n")
        vocabulary = vocabulary[:-1] if vocabulary[-1] == "" else vocabulary
        missing = sorted(set(SPECIAL.values()) - set(vocabulary))
        if missing:
            raise UserError(
                f"{name} is no BERT vocabulary: it lacks {', '.join(missing)}; give a vocab.txt of WordPieces."
            )
        if len(set(vocabulary)) < len(vocabulary):
            raise UserError(f"{name} names a piece twice; copy it again, or give another vocab.txt.")
        return build_tokenizer(vocabulary)
    if path.is_dir() and not any(path.glob("*")):
        raise UserError(f"tokenizer '{name}' is neither a file nor a folder nor a known name; give a vocab.txt.")
    tokenizer = working_tokenizer(name, "give a vocab.txt, a folder of save_pretrained or a name that transformers knows")
    if not all(getattr(tokenizer, field) for field in SPECIAL):
        raise UserError(f"tokenizer '{name}' lacks one of {', '.join(SPECIAL.values())}; give a BERT-like one.")
    return tokenizer
