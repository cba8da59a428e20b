"""Cascade mining against plain random mining: CPU seconds of both on one thread, and which of the true hardest the probe keeps.

    python -m tests.bench.cascade                                        random weights at the sizes of run.py: the time alone
    python -m tests.bench.cascade --checkpoint RUN --data SHARDS         a run that trained with negatives.cascade

The share kept is exact here: every candidate is scored by the whole encoder too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.draw import Draw
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.load import find_checkpoint, load_model
from tagsds.negatives.cascade import mine_cascaded
from tagsds.negatives.random import NegativesConfig, both_directions, draw_random, mine_random
from tagsds.scoring.scorer import Scorer
from tests.bench.variants import corpus


def subject(args: argparse.Namespace) -> tuple[UniterModel, Bank]:
    if args.checkpoint:
        return load_model(find_checkpoint(args.checkpoint)[0]), load_bank(args.data, args.split)[0]
    torch.manual_seed(0)
    sizes = UniterConfig(
        hidden_size=args.hidden, num_hidden_layers=args.layers, num_attention_heads=args.heads, intermediate_size=4 * args.hidden,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = UniterModel(sizes).eval()
    model.add_probe(0)
    return model, corpus(args.images)


def seconds(mine: Callable[[], Any], repeats: int) -> float:
    """CPU seconds, which a busy machine does not change much: the fastest of `repeats`, behind one that warms up."""
    mine()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        mine()
        found.append(time.process_time() - start)
    return min(found)


def kept_of_top(
    scorer: Scorer, bank: Bank, captions: torch.Tensor, config: NegativesConfig, shares: list[float]
) -> dict[str, list[float]]:
    """{share: [of images, of captions]}: mean share of the `config.keep` hardest of a row that are among the probe's best."""
    found: dict[str, list[torch.Tensor]] = {}
    for number, part in enumerate(captions.split(8)):
        drawn = draw_random(bank, part, config.count, Draw(0, number, 0))
        full, probed = (both_directions(bank, part, *drawn, score) for score in (scorer, scorer.probe))
        for share in shares:
            some = NegativesConfig(config.count, config.keep, cascade=share).scored
            for whole, quick in zip(full, probed, strict=True):
                kept = torch.zeros_like(quick).scatter_(1, quick.topk(some, dim=1).indices, 1.0)
                found.setdefault(f"{share}", []).append(kept.gather(1, whole.topk(config.keep, dim=1).indices).mean())
    return {share: [float(torch.stack(of[side::2]).mean()) for side in (0, 1)] for share, of in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--captions", type=int, default=200, help="over which the share kept is taken")
    parser.add_argument("--pairs", type=int, default=4, help="true pairs of a micro-batch that is timed")
    parser.add_argument("--count", type=int, default=399)
    parser.add_argument("--keep", type=int, default=31)
    parser.add_argument("--share", type=float, default=0.34)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--images", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, bank = subject(args)
    scorer = Scorer(model)
    captions = torch.randperm(bank.num_captions, generator=torch.Generator().manual_seed(1))
    config = NegativesConfig(args.count, args.keep, cascade=args.share, cascade_after=0)
    some, draw = captions[: args.pairs], Draw(0, 0, 0)
    plain = seconds(lambda: mine_random(bank, some, args.count, args.keep, scorer, draw), args.repeats)
    quick = seconds(lambda: mine_cascaded(bank, some, config, scorer, draw), args.repeats)
    drawn = draw_random(bank, some, args.count, draw)
    probe = seconds(lambda: both_directions(bank, some, *drawn, scorer.probe), args.repeats)
    size = f"{model.config.hidden_size} x {model.config.num_hidden_layers}, regions of {model.config.region_dim}"
    row: dict[str, Any] = {
        "model": size, "pairs": args.pairs, "count": args.count, "keep": args.keep, "share": args.share,
        "plain_cpu_s": plain, "cascade_cpu_s": quick, "of_it_probe_cpu_s": probe, "faster": plain / quick,
        "torch": torch.__version__,
    }  # fmt: skip
    if args.checkpoint:
        shares = sorted({args.share, 0.2, 0.25, 0.5})
        row["kept_of_top"] = kept_of_top(scorer, bank, captions[: args.captions], config, shares)
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
