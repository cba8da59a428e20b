"""The few facts about the tokenizer that masking and refilling need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tagsds.errors import UserError


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


def load_tokenizer(folder: Path):
    """The Hugging Face fast tokenizer in `folder`, never from a hub."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} holds no tokenizer.json; pack the corpus again with tagsds-pack.")
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
