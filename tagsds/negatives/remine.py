"""Offline candidates re-ordered by the encoder with its current weights: the dual encoder that mined them grows stale."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from tagsds.data.bank import Bank
from tagsds.data.builder import PairBuilder
from tagsds.formats.candidates import Candidates
from tagsds.negatives.offline import check_whole
from tagsds.scoring.scorer import Scorer

PAIRS_A_CALL = 4096  # scored in one call of the scorer, which embeds the texts and images of a call once each


def rescore(
    scorer: Scorer, bank: Bank, candidates: Candidates, pool: int, images: Tensor, captions: Tensor, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """New rows int32 [n, Kc] of `images` (int64 [n]) and [m, Ki] of `captions` (int64 [m]), on the CPU.

    The first `pool` candidates of each row are put in the order of the encoder's score, hardest first, equal ones as they were;
    the ranks behind stay. So each process orders its share of the images and captions. Under ZeRO-3, where all processes must call
    the scorer equally often, the shares must be equally long (`World.even_share`).
    """
    check_whole(candidates, bank)
    of_images = candidates.captions_of_image[images.cpu()]
    of_captions = candidates.images_of_caption[captions.cpu()]
    for rows, owners, of_image in ((of_images, images, True), (of_captions, captions, False)):
        width = min(pool, rows.shape[1])
        block = max(1, PAIRS_A_CALL // width)
        label = "images" if of_image else "captions"
        for start in tqdm(range(0, len(rows), block), desc=f"re-mine {label}", unit="block", disable=not progress, leave=False):
            part = rows[start : start + block, :width]
            own = owners[start : start + block].to(bank.device)[:, None].expand(part.shape)
            found = part.to(bank.device, torch.int64).clamp(min=0)  # the score of a missing one is dropped
            builder = PairBuilder(bank)
            texts, shown = (found, own) if of_image else (own, found)
            builder.pairs(builder.captions(texts), shown)
            scores = scorer(builder.build()).view(part.shape).cpu().masked_fill(part < 0, -torch.inf)
            order = scores.argsort(dim=1, descending=True, stable=True)
            rows[start : start + block, :width] = part.gather(1, order)
    return of_images, of_captions
