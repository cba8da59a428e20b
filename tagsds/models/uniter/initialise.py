"""How a stage's new heads begin (TAGS-DC, arXiv 2111.03349, section 3)."""

from __future__ import annotations

import torch

from tagsds.models.uniter.encoder import UniterModel

HEADS = ("itm", "rank", "mlm", "discriminate", "correct", "region_feature", "region_class")
_SOURCE = {"rank": "itm", "discriminate": "itm", "correct": "mlm"}


@torch.no_grad()
def initialise_heads(model: UniterModel, needed: list[str]) -> list[str]:
    """Begin the heads a stage needs and no earlier stage has trained from the head the method names: `rank` from row 1 of
    `itm`, `discriminate` from `itm` (so that "match" starts as "original"), `correct` from `mlm`; only from a trained one. Returns
    what was done, for the log."""
    done = []
    for head in needed:
        source = _SOURCE.get(head)
        if source is None or head in model.config.trained_heads or source not in model.config.trained_heads:
            continue
        state = {k: v.clone() for k, v in getattr(model, source).state_dict().items()}
        if head == "rank":
            state = {key: value[1:2] for key, value in state.items()}
        if head == "correct":
            state.pop("decoder.weight")  # tied to the word embeddings already
        getattr(model, head).load_state_dict(state, strict=head != "correct")
        done.append(f"{head} <- {source}")
    return done
