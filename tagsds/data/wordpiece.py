"""A WordPiece tokenizer from what the user has: a name, a folder or a vocab.txt."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tagsds.errors import UserError

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
        vocabulary = path.read_text(encoding="utf-8").split("\n")
        vocabulary = vocabulary[:-1] if vocabulary[-1] == "" else vocabulary
        missing = sorted(set(SPECIAL.values()) - set(vocabulary))
        if missing:
            raise UserError(
                f"{name} is no BERT vocabulary: it lacks {', '.join(missing)}; give a vocab.txt of WordPieces."
            )
        return build_tokenizer(vocabulary)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"tokenizer '{name}' is neither a file nor a folder nor a known name; give a vocab.txt."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"tokenizer '{name}' is not a fast one and gives no character offsets; give one that is.")
    if not all(getattr(tokenizer, field) for field in SPECIAL):
        raise UserError(f"tokenizer '{name}' lacks one of {', '.join(SPECIAL.values())}; give a BERT-like one.")
    return tokenizer
