"""A matcher of a few weights, for tests that need some matcher; run as a file, it is tagsds-evaluate with that matcher known."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers.config import MatcherConfig
from tagsds.models.matchers.matcher import Encoded, Matcher


class StandInConfig(MatcherConfig):
    """`fragments`: keep regions and words apart, or add them up to one vector."""

    model_type = "tagsds_stand_in"

    def __init__(self, fragments: bool = True, **kwargs) -> None:
        self.fragments = fragments
        super().__init__(**kwargs)


class StandInMatcher(Matcher):
    """Mean over the words of the best region's cosine."""

    config_class = StandInConfig

    def __init__(self, config: StandInConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.embed_size)
        self.regions = nn.Linear(config.region_dim, config.embed_size)
        self.dropout = nn.Dropout(0.5)  # must not show in an evaluation
        self.post_init()

    def encoded(self, rows: Ragged) -> Encoded:
        padded, lengths = rows.pad(0), rows.lengths
        if not self.config.fragments:
            padded, lengths = padded.sum(1, keepdim=True), torch.ones_like(lengths)
        return Encoded(nn.functional.normalize(padded, dim=-1), lengths)

    def encode_images(self, images: Images) -> Encoded:
        values = self.dropout(self.regions(images.regions.values.float()))
        return self.encoded(Ragged(values, images.lengths))

    def encode_captions(self, captions: Ragged) -> Encoded:
        return self.encoded(Ragged(self.words(captions.values), captions.lengths))

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        i, c = len(images), len(captions)
        rows, columns = torch.arange(i).repeat_interleave(c), torch.arange(c).repeat(i)
        return self.compare_pairs(images.select(rows), captions.select(columns)).view(i, c)

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        cosines = torch.einsum("pre,pwe->prw", images.vectors, captions.vectors)
        behind = torch.arange(cosines.shape[1]) >= images.lengths[:, None]
        best = cosines.masked_fill(behind[:, :, None], -torch.inf).amax(1)
        return (best * (torch.arange(cosines.shape[2]) < captions.lengths[:, None])).sum(1) / captions.lengths


AutoConfig.register(StandInConfig.model_type, StandInConfig, exist_ok=True)
AutoModel.register(StandInConfig, StandInMatcher, exist_ok=True)


def matcher(seed: int = 5, **changes) -> StandInMatcher:
    """Random weights, for the shards of `tiny_corpus` unless `changes` say otherwise."""
    torch.manual_seed(seed)
    model = StandInMatcher(StandInConfig(**({"vocab_size": 24, "region_dim": 8, "embed_size": 6} | changes)))
    nn.init.normal_(model.words.weight)
    nn.init.normal_(model.regions.weight)
    return model.eval()


def write_matcher(folder: Path, seed: int = 5, **changes) -> Path:
    """In Hugging Face's layout, with the tokenizer of `tiny_corpus`."""
    from tests import tiny_corpus as tiny

    matcher(seed, **({"vocab_size": len(tiny.WORDS)} | changes)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    from tagsds.evaluate import main

    main(sys.argv[1:])
