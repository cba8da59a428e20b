"""The few facts about the tokenizer that masking and refilling need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.errors import UserError, first_line
from tagsds.formats.manifest import Manifest

PROBE = "a \u2603 b"  # its second word is in no vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the special pieces and the number of pieces."""

    size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int

    def special(self, device: torch.device | str = "cpu") -> Tensor:
        """Pieces that are never drawn: int64 [5]."""
        return torch.tensor([self.pad, self.unk, self.cls, self.sep, self.mask], device=device)

    @staticmethod
    def of(tokenizer) -> Vocabulary:
        ids = {
            "pad": tokenizer.pad_token_id,
            "unk": tokenizer.unk_token_id,
            "cls": tokenizer.cls_token_id,
            "sep": tokenizer.sep_token_id,
            "mask": tokenizer.mask_token_id,
        }
        for name, value in ids.items():
            if value is None:
                raise UserError(f"the tokenizer '{tokenizer.name_or_path}' has no {name} token; use a BERT-type one.")
        return Vocabulary(size=len(tokenizer), **ids)


def load_tokenizer(folder: Path) -> Any:
    """The Hugging Face fast tokenizer in `folder`, never from a hub. UserError where it does not load or does not tokenise, or
    where the numbers of its pieces have gaps."""
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} holds no tokenizer.json; pack the corpus again with tagsds-pack.")
    return working_tokenizer(str(folder), "copy its files again, or pack the corpus again with tagsds-pack", local_files_only=True)


def working_tokenizer(name: str, remedy: str, **options: Any) -> Any:
    """AutoTokenizer.from_pretrained and a trial of what it gives. UserError, which ends with `remedy`, for whatever goes wrong: the
    libraries raise a dozen kinds of exception for a damaged file."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
        if not tokenizer.is_fast:
            raise ValueError("it is not a fast one and gives no character offsets")
        pieces = len(tokenizer)
        if pieces == 0 or max(tokenizer.get_vocab().values()) >= pieces:
            raise ValueError(f"it numbers its {pieces} pieces with gaps")
        for number in tokenizer([PROBE], return_offsets_mapping=True)["input_ids"][0]:
            if not 0 <= number < pieces:
                raise ValueError(f"it gives the piece {number} of {pieces}")
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # a panic of the tokenizers library
            raise
        raise UserError(f"the tokenizer in {name} cannot be loaded ({first_line(error)}); {remedy}.") from error
    return tokenizer


def corpus_tokenizer(manifest: Manifest) -> Any:
    """The tokenizer of a packed corpus, once its files have the manifest's sha256 (where it has them) and it has as many pieces as
    the manifest says."""
    manifest.check_tokenizer()
    folder = manifest.folder / "tokenizer"
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) != manifest.vocab_size:
        raise UserError(
            f"{folder} has {len(tokenizer)} pieces, {manifest.folder / 'manifest.json'} says {manifest.vocab_size}; "
            "copy the corpus again, or pack it again."
        )
    return tokenizer
