"""How far pre-training has learnt its images by heart: its losses on images that it was trained on and on dev.

    python -m tests.bench.held_out RUN [RUN ...] --data SHARDS [--first 300]

Each task hides words or regions as in training (`--mask-probability`), three times over, and the same ones for every run. MRC-KL is
summed over the classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.data.vocabulary import Vocabulary, corpus_tokenizer
from tagsds.draw import generator
from tagsds.evaluators.console import text_table
from tagsds.formats.manifest import read_manifest
from tagsds.models.load import find_checkpoint, load_model
from tagsds.models.uniter import Layout, UniterModel
from tagsds.objectives.settings import PretrainConfig
from tagsds.objectives.tasks import TASKS, Batch

ASKED = ("itm", "mlm", "mrckl")
TIMES, BLOCK = 3, 256  # maskings of each caption; captions of a forward


@torch.no_grad()
def losses(model: UniterModel, bank: Bank, vocab: Vocabulary, config: PretrainConfig) -> dict[str, float]:
    """{task: its loss, a mean over the captions of a bank}; the model in evaluation mode."""
    found = {}
    for name in ASKED:
        total = 0.0
        for time in range(TIMES):
            for block, captions in enumerate(torch.arange(bank.num_captions).split(BLOCK)):
                task, batch = TASKS[name](config), Batch.of(bank, captions)
                task.hide(batch, vocab, generator("cpu", "held out", name, time, block))
                pairs = batch.pairs()
                layout = Layout.of(pairs)
                output = task.value(model, model(pairs, task.positions(batch, layout)), layout, batch)
                total += float(output.terms[name][1]) * len(captions)
        found[name] = total / (TIMES * bank.num_captions)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--first", type=int, default=300, help="images of each split")
    parser.add_argument("--mask-probability", type=float, default=0.4)
    args = parser.parse_args(argv)
    vocab = Vocabulary.of(corpus_tokenizer(read_manifest(args.data)))
    banks = {split: load_bank(args.data, split, args.first, checksum=False)[0] for split in ("train", "dev")}
    config = PretrainConfig(mask_probability=args.mask_probability, kl_reduction="sum")
    rows = []
    for run in args.runs:
        model = load_model(find_checkpoint(run)[0]).eval()
        values = [loss for bank in banks.values() for loss in losses(model, bank, vocab, config).values()]
        rows.append([run.name, *(f"{value:.3f}" for value in values)])
    print(text_table(["run", *(f"{split} {name}" for split in banks for name in ASKED)], rows))


if __name__ == "__main__":
    main()
