"""From models and a bank to everything a results file says: recalls, edits, ensembles, reranking.

First all scoring, in which the ranks work together; then all figures, on the first rank alone. So an error in a figure never
leaves the other ranks waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.evaluators.edits import accuracies, score_edits
from tagsds.evaluators.ensemble import average
from tagsds.evaluators.metrics import coco_folds, recalls
from tagsds.evaluators.pairs_file import EditSet
from tagsds.evaluators.rankings import ranking_examples, score_histogram
from tagsds.evaluators.rerank import rerank_results, score_shortlists
from tagsds.formats.results import FORMAT, VERSION
from tagsds.models import UniterModel
from tagsds.models.load import check_captions, positions_of_model
from tagsds.models.matchers.matcher import Matcher
from tagsds.ranks import World, current_world
from tagsds.scoring.matcher_scorer import scorer_of
from tagsds.scoring.scorer import PairScorer, clock, score_matrix

Model = UniterModel | Matcher


@dataclass
class Scores:
    """What one model gave, on the first rank: `matrix` [I, C] or None, a pair of [N] for every kind of edit."""

    matrix: Tensor | None = None
    edits: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    pairs: int = 0  # scored
    seconds: float = 0.0
    exact: dict[str, float] = field(default_factory=dict)  # pairs_scored and seconds of the matrix alone


def first_captions(bank: Bank, images: int, per_image: int) -> Tensor:
    """Numbers of the first `per_image` captions (0: all) of the first `images` images, image by image: int64 [C].

    COCO has images with six and seven captions; the published figures use five each.
    """
    rows = [bank.captions_of_image[image] for image in range(images)]
    return torch.cat([row[:per_image] if per_image else row for row in rows])


def shared_captions(bank: Bank, captions: Tensor) -> int:
    """How many of the captions (int64 [C]) another image has word for word: rounding orders those."""
    owners: dict[str, set[int]] = {}
    images = bank.image_of_caption[captions].tolist()
    for caption, image in zip(captions.tolist(), images, strict=True):
        owners.setdefault(bank.texts[caption], set()).add(image)
    return sum(len(owners[bank.texts[caption]]) > 1 for caption in captions.tolist())


def evaluate(
    model: Model,
    bank: Bank,
    tokenizer: Any = None,
    *,
    first: int | None = None,
    captions_per_image: int = 5,
    edits: Sequence[EditSet] = (),
    retrieval: bool = True,
    with_coco_folds: bool = False,
    name: str = "model",
    ensemble: Mapping[str, Model] | None = None,
    shortlist: Matcher | None = None,
    rerank: Sequence[int] = (),
    exact: bool = True,
    dtype: torch.dtype | None = None,
    max_tokens: int | None = None,
    progress: bool = False,
    world: World | None = None,
) -> dict[str, Any] | None:
    """Recalls, accuracies by kind of edit, a sample of rankings, the time taken; None on all ranks but the first.

    model      on the device of the bank; a rank head decides (see `ensure_rank_head` for a pre-training checkpoint), or a
               matcher's similarity
    first      only the first N images are ranked against each other; the edits use every image of the bank
    edits      need the tokenizer; scores are exact for dtype None
    ensemble   further models of the same kind, by name, whose scores are averaged with those of `model` (called `name`)
    shortlist  a matcher; the model scores its `rerank` best of each query again. exact=False leaves the whole matrix away
    """
    world = world or current_world(bank.device)
    count = bank.num_images if first is None else min(first, bank.num_images)
    captions = first_captions(bank, count, captions_per_image) if retrieval else torch.empty(0, dtype=torch.int64)
    images = torch.arange(count, device=bank.device)
    members = {name: model, **(ensemble or {})}
    if retrieval:
        for member in members.values():
            check_captions(positions_of_model(member.config), bank, captions)

    def score(scorer: PairScorer) -> Scores:
        done, started = Scores(), clock(bank.device)
        if retrieval and exact:
            part = score_matrix(scorer, bank, world.share(images), captions, progress=progress and world.first)
            done.matrix = world.gather(part, count)
            done.pairs = count * len(captions)
            done.exact = {"pairs_scored": done.pairs, "seconds": clock(bank.device) - started}
        for kind in edits:
            true, false = score_edits(scorer, bank, tokenizer, kind.pairs, world, progress)
            done.pairs += 2 * len(kind.pairs)
            if true is not None and false is not None:
                done.edits.append((true, false))
        done.seconds = clock(bank.device) - started
        return done

    scorers = {label: scorer_of(member, max_tokens, dtype) for label, member in members.items()}
    scores = {label: score(scorer) for label, scorer in scorers.items()}
    shortlists = None
    if shortlist is not None:
        matcher = scorer_of(shortlist, max_tokens, dtype)
        shortlists = score_shortlists(matcher, scorers[name], bank, images, captions, rerank, world, progress)
    if not world.first:
        return None

    own = scores[name]
    results: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    unit = "ranking logit" if isinstance(model, UniterModel) else "similarity"
    if retrieval:
        results |= {"images": count, "captions": len(captions), "captions_per_image": captions_per_image}
    if own.matrix is not None:
        results |= retrieval_results(own.matrix, bank, captions, with_coco_folds, unit)
    if edits:
        results["edits"] = accuracies(edits, own.edits)
    if ensemble:
        image_of_caption = bank.image_of_caption[captions] if retrieval else None
        results["ensemble"] = ensemble_results(scores, image_of_caption, edits, with_coco_folds, unit == "ranking logit")
    if shortlists is not None:
        results |= rerank_results(shortlists, bank.image_of_caption[captions])
        if own.exact:
            results["exact"] = own.exact
    speed = {"seconds": own.seconds, "pairs_scored": own.pairs, "pairs_per_second": own.pairs / max(own.seconds, 1e-9)}
    return results | speed


def retrieval_results(
    scores: Tensor, bank: Bank, captions: Tensor, with_coco_folds: bool = False, unit: str = "ranking logit"
) -> dict[str, Any]:
    """What follows from the score matrix [I, C]: images 0..I-1 of the bank, captions int64 [C]."""
    image_of_caption = bank.image_of_caption[captions]
    results: dict[str, Any] = {"recalls": recalls(scores, image_of_caption).as_dict()}
    results["shared_captions"] = shared_captions(bank, captions)
    if with_coco_folds:
        results["coco_1k"] = coco_folds(scores, image_of_caption).as_dict()
    results["examples"] = ranking_examples(scores, image_of_caption, bank, captions)
    results["score_histogram"] = score_histogram(scores, image_of_caption, unit=unit)
    return results


def ensemble_results(
    scores: Mapping[str, Scores], image_of_caption: Tensor | None, edits: Sequence[EditSet], with_coco_folds: bool,
    logits: bool,
) -> dict[str, Any]:  # fmt: skip
    """The entry "ensemble" of a results file: figures of the averaged scores, and the recalls of each member alone.

    image_of_caption   int64 [C], or None where nothing was ranked
    """
    results: dict[str, Any] = {"members": list(scores)}
    if image_of_caption is not None:
        matrices = {name: of.matrix for name, of in scores.items() if of.matrix is not None}
        together = average(list(matrices.values()), logits)
        results["recalls"] = recalls(together, image_of_caption).as_dict()
        if with_coco_folds:
            results["coco_1k"] = coco_folds(together, image_of_caption).as_dict()
        results["singles"] = {name: recalls(matrix, image_of_caption).as_dict() for name, matrix in matrices.items()}
    if edits:
        averaged = []
        for kind in range(len(edits)):
            true, false = (average([of.edits[kind][side] for of in scores.values()], logits) for side in (0, 1))
            averaged.append((true, false))
        results["edits"] = accuracies(edits, averaged)
    return results
