"""How often a word points to a region that it names: attention both ways against the transport plan of pre-training and chance.

    python -m tests.bench.alignment --checkpoint RUN --data SHARDS [--split test] [--images 120] [--output alignment.json]

Looked at are the words of captions that are part of the class name of some regions of their image and not of others ("red" beside a
red circle and a blue one). A word counts as right if the region of its highest weight is one that it names.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import tagsds
from tagsds.data.bank import Bank
from tagsds.data.pairs import Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank
from tagsds.data.words import Spelling
from tagsds.losses.itm import transport_plan
from tests.bench.run import about


@torch.no_grad()
def plan_of(retriever: tagsds.Retriever, bank: Bank, row: int, sentence: str) -> Tensor:
    """Rows of the words in the transport plan over the states of the last layer: [W, R]."""
    ids = torch.tensor(retriever.tokenizer(sentence)["input_ids"])
    zero = torch.zeros(1, dtype=torch.int64)
    states = retriever.model(Pairs(Ragged.from_rows([ids]), bank.image_table(torch.tensor([row])), zero, zero))
    unit = torch.nn.functional.normalize(states, dim=-1)
    words, regions = unit[: len(ids)], unit[len(ids) :]
    here = torch.ones(1, len(words), dtype=torch.bool), torch.ones(1, len(regions), dtype=torch.bool)
    plan = transport_plan((1 - words @ regions.T)[None], *here)[0, 1:-1]
    return torch.stack([plan[word].sum(dim=0) for word in Spelling.of(retriever.tokenizer, sentence).words()])


def measure(checkpoint: Path, data: Path, split: str, images: int) -> dict[str, float]:
    retriever = tagsds.load(checkpoint, data, "cpu", split=split)
    bank, manifest = load_bank(data, split, first=images)
    if bank.classes is None:
        raise tagsds.UserError(f"{data} has no classes of regions; give a corpus with classes.npy.")
    right, words, chance = {"attention": 0, "plan": 0}, 0, 0.0
    for row in range(bank.num_images):
        classes = bank.classes[int(bank.regions.offsets[row]) : int(bank.regions.offsets[row + 1])].argmax(dim=1).tolist()
        names = [manifest.class_names[number].split() for number in classes]
        for caption in retriever.captions(bank.keys[row])[:2]:
            aligned = retriever.align(bank.keys[row], caption)
            plan = plan_of(retriever, bank, row, caption)
            for (word, weights), planned in zip(aligned, plan, strict=True):
                named = [word.lower() in name for name in names]
                if any(named) and not all(named):
                    words, chance = words + 1, chance + sum(named) / len(named)
                    right["attention"] += named[int(weights.argmax())]
                    right["plan"] += named[int(planned.argmax())]
    share = {name: round(count / max(words, 1), 3) for name, count in right.items()}
    return {"images": bank.num_images, "words": words, **share, "chance": round(chance / max(words, 1), 3)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    row = measure(args.checkpoint, args.data, args.split, args.images)
    print(json.dumps(row))
    if args.output:
        facts = about(argparse.Namespace(**vars(args), device="cpu"))
        args.output.write_text(json.dumps({"about": facts, "rows": [row]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
