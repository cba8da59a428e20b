"""What an estimate needs to know of a corpus: the manifest's counts, and the mean lengths of its first captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tagsds.config import RunConfig
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.formats.manifest import Manifest
from tagsds.negatives.writer import mask_captions

SAMPLE = 64  # images of the split that are read
TABLES_OF_CAPTION = 4 * 8 + 60  # bytes in the tables beside pieces and spans: lengths, the text, ids; a mean of COCO's captions


@dataclass(frozen=True)
class Corpus:
    """Sizes of the split to train on.

    images, captions, regions   how many
    pieces, longest_text        word pieces of a caption with [CLS] and [SEP]: mean of the sample, most of the split
    most_regions                of an image
    masked                      pieces that one masking of a caption hides, mean of the sample
    feature_dim, classes        width of a region's feature and of its soft labels (0: not read)
    shard_bytes                 of each shard
    """

    images: int
    captions: int
    regions: int
    pieces: float
    longest_text: int
    most_regions: int
    masked: float
    feature_dim: int
    classes: int
    shard_bytes: tuple[int, ...]

    @property
    def regions_of_image(self) -> float:
        return self.regions / self.images

    @property
    def tokens(self) -> float:
        """Word pieces and regions of a pair, on average."""
        return self.pieces + self.regions_of_image

    @property
    def longest(self) -> int:
        """Most word pieces and regions of a pair."""
        return self.longest_text + self.most_regions

    @property
    def table_bytes(self) -> float:
        """Of the tables in memory or in the cache: float16 features, float32 boxes and float16 soft labels of each region, int32
        pieces and about as many span entries (2 x int32) of each caption, and what `TABLES_OF_CAPTION` names."""
        of_region = 2 * self.feature_dim + 16 + 2 * self.classes
        return self.regions * of_region + self.captions * (12 * self.pieces + TABLES_OF_CAPTION)


def read_corpus(manifest: Manifest, config: RunConfig, vocab: Vocabulary, classes: bool) -> Corpus:
    """Counts of the manifest; lengths of the first images' captions, which are read from the shards (no cache is built)."""
    split = config.data.split
    shards = manifest.shards(split)
    bank, _ = load_bank(manifest.folder, split, first=SAMPLE, checksum=False, classes=False, cache="none")
    captions = torch.arange(bank.num_captions)
    maskings = mask_captions(bank, captions, config.synthetic, vocab, torch.Generator().manual_seed(config.seed))
    return Corpus(
        images=sum(shard["samples"] for shard in shards),
        captions=sum(shard["captions"] for shard in shards),
        regions=sum(shard["regions"] for shard in shards),
        pieces=float(bank.tokens.lengths.float().mean()),
        longest_text=manifest.caption_pieces(split),
        most_regions=manifest.max_regions,
        masked=float(maskings.chosen.sum() / maskings.chosen.shape[:2].numel()),
        feature_dim=manifest.feature_dim,
        classes=manifest.num_classes if classes else 0,
        shard_bytes=tuple(shard["bytes"] for shard in shards),
    )
