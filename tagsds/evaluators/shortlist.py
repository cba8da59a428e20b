"""Shortlist, then rerank: a matcher scores every pair, the encoder only each query's first K.

The encoder needs a forward for every pair, the matcher one for every image and every caption; so the cost of an exact
evaluation, I x C forwards, falls to at most K x (I + C). What is not shortlisted stays behind what is, in the matcher's order.

Shapes: I images, C captions, P pairs; a pair's number is image * C + caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.errors import UserError
from tagsds.evaluators.metrics import ROWS, check_scores, ranks, recalls, recalls_of_ranks
from tagsds.ranks import World
from tagsds.scoring.protocol import PairScorer
from tagsds.scoring.scorer import clock, score_listed

ABOVE = 2.0**33  # more than any two order keys are apart


@dataclass(frozen=True)
class Shortlist:
    """`captions_of_image` int64 [I, k], `images_of_caption` int64 [C, k']: best first; k and k' are cut to C and I."""

    captions_of_image: Tensor
    images_of_caption: Tensor

    def cut(self, k: int) -> Shortlist:
        """The first k of each."""
        return Shortlist(self.captions_of_image[:, :k], self.images_of_caption[:, :k])

    def of_images(self) -> Tensor:
        """bool [I, C]: captions in the list of the image."""
        inside = torch.zeros(self.shape, dtype=torch.bool, device=self.captions_of_image.device)
        return inside.scatter_(1, self.captions_of_image, True)

    def of_captions(self) -> Tensor:
        """bool [I, C]: images in the list of the caption."""
        inside = torch.zeros(self.shape, dtype=torch.bool, device=self.captions_of_image.device)
        return inside.scatter_(0, self.images_of_caption.T, True)

    def pairs(self) -> Tensor:
        """Numbers of the pairs in either list, each once, image by image: int64 [P]."""
        return (self.of_images() | self.of_captions()).flatten().nonzero().squeeze(1)

    def recall(self, image_of_caption: Tensor) -> dict[str, float]:
        """Percentage of images with an own caption in their list ('text'), of captions with their image in it ('image')."""
        image_of_caption = image_of_caption.to(self.captions_of_image.device)
        images = torch.arange(len(self.captions_of_image), device=image_of_caption.device)
        text = (image_of_caption[self.captions_of_image] == images[:, None]).any(1)
        image = (self.images_of_caption == image_of_caption[:, None]).any(1)
        return {"text": 100.0 * int(text.sum()) / len(text), "image": 100.0 * int(image.sum()) / len(image)}

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.captions_of_image), len(self.images_of_caption)


def shortlist(similarity: Tensor, k: int) -> Shortlist:
    """The k best of each row and of each column of similarity [I, C]; of equal ones the lower number."""
    return Shortlist(_best(similarity, k), _best(similarity.T, k))


def _best(rows: Tensor, k: int) -> Tensor:
    # sorted as a whole: topk leaves open which of equal scores it takes
    return torch.cat([part.sort(dim=1, descending=True, stable=True).indices[:, :k] for part in rows.split(ROWS)])


def reranked(similarity: Tensor, lists: Shortlist, pairs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Two matrices float64 [I, C], the first to rank captions within its rows, the second images within its columns.

    similarity   float32 [I, C], the matcher's
    pairs        int64 [P] numbers of pairs, those of both lists at least; scores float32 [P], the encoder's

    A pair may be in the list of its image and not in that of its caption, hence two. An entry is not a score but its
    order key, so that setting the shortlisted ones above all others neither makes nor breaks a tie.
    """
    check_listed(scores, pairs, similarity.shape[1])
    encoder = torch.full(similarity.shape, torch.nan, dtype=torch.float32, device=similarity.device)
    encoder.view(-1)[pairs] = scores
    inside = lists.of_images(), lists.of_captions()
    if bool((torch.isnan(encoder) & (inside[0] | inside[1])).any()):
        raise ValueError("a shortlisted pair has no score of the encoder")
    low, high = order_keys(similarity), order_keys(encoder) + ABOVE
    return torch.where(inside[0], high, low), torch.where(inside[1], high, low)


def order_keys(values: Tensor) -> Tensor:
    """float32 -> whole numbers as float64, ordered as the values are and equal where they are equal.

    The bits of a float, read as an integer, grow with it; below zero they fall, and are turned round.
    """
    bits = (values + 0.0).contiguous().view(torch.int32)  # + 0.0: the two zeros are one value
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).double()


def check_listed(scores: Tensor, pairs: Tensor, captions: int) -> None:
    """UserError for NaN, whose order key would pass for a high score."""
    bad = torch.isnan(scores).nonzero()
    if len(bad):
        image, caption = divmod(int(pairs[int(bad[0])]), captions)
        raise UserError(
            f"the encoder's score of image {image} with caption {caption} is NaN; the checkpoint is broken "
            "(look at its last losses), or use --dtype fp32."
        )


@dataclass
class Reranking:
    """What was scored, on the first rank; pairs and scores of step n serve all later steps too."""

    similarity: Tensor  # float32 [I, C], the matcher's
    lists: Shortlist  # of the largest k
    ks: list[int]
    matcher_seconds: float
    encoder_seconds: list[float]  # of each step's own pairs
    pairs: list[Tensor]  # int64 [P_n]
    scores: list[Tensor]  # float32 [P_n]


def score_shortlists(
    matcher: PairScorer, encoder: PairScorer, bank: Bank, images: Tensor, captions: Tensor, ks: Sequence[int],
    world: World, progress: bool = False,
) -> Reranking | None:  # fmt: skip
    """Score for every k (cut to the corpus) the pairs that no smaller k had; None on all ranks but the first.

    images int64 [I], captions int64 [C]: numbers in the bank. Every collective of the reranking is in here.
    """
    device, sizes = bank.device, (len(images), len(captions))
    started = clock(device)
    part = matcher.matrix(bank, world.share(images), captions, progress and world.is_main)
    similarity = world.gather(part, sizes[0])
    ks = sorted({min(k, max(sizes)) for k in ks})
    lists = None if similarity is None else shortlist(similarity, ks[-1])
    found = None if similarity is None or lists is None else Reranking(similarity, lists, ks, 0.0, [], [], [])
    known = torch.zeros(sizes[0] * sizes[1], dtype=torch.bool, device=device) if found else None
    if found:
        found.matcher_seconds = clock(device) - started
    for k in ks:
        wanted = None
        if found and known is not None:
            wanted = found.lists.cut(k).pairs()
            wanted = wanted[~known[wanted]]
            known[wanted] = True
        started = clock(device)
        wanted = world.broadcast(wanted)
        mine = world.share(wanted)
        part = score_listed(
            encoder, bank, images[mine // sizes[1]], captions[mine % sizes[1]], progress=progress and world.is_main
        )
        scores = world.gather(part, len(wanted)) if len(wanted) else part
        if found and scores is not None:
            found.encoder_seconds.append(clock(device) - started)
            found.pairs.append(wanted)
            found.scores.append(scores)
    return found


def rerank_results(done: Reranking, image_of_caption: Tensor) -> dict[str, Any]:
    """The entries "shortlist" (the matcher alone) and "rerank" (a row a k) of a results file."""
    check_scores(done.similarity, image_of_caption)
    rows, seconds = [], 0.0
    for step, k in enumerate(done.ks):
        pairs, scores = torch.cat(done.pairs[: step + 1]), torch.cat(done.scores[: step + 1])
        lists = done.lists.cut(k)
        of_rows, of_columns = reranked(done.similarity, lists, pairs, scores)
        text_ranks, image_ranks = ranks(of_rows, image_of_caption)[0], ranks(of_columns, image_of_caption)[1]
        seconds += done.encoder_seconds[step]  # a run with this k alone would score these pairs
        rows.append(
            {
                "k": k,
                "recalls": recalls_of_ranks(text_ranks, image_ranks).as_dict(),
                "recall_of_shortlist": lists.recall(image_of_caption),
                "pairs_scored": len(pairs),
                "seconds": {"matcher": done.matcher_seconds, "encoder": seconds},
            }
        )
    return {"shortlist": {"recalls": recalls(done.similarity, image_of_caption).as_dict()}, "rerank": rows}
