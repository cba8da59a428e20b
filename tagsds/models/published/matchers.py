"""Checkpoints of the repositories of VSRN (arXiv 1909.02701), SCAN (1803.08024) and BFAN (1909.11416), and of AOQ's on top.

All save {"model": [state of the image half, state of the text half], "opt": the options of the training, ...}; what the matrices
mean is in the options. What differs between the kinds is in each matcher's folder (`published.py`, a `MatcherLayout`).
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from tagsds.errors import UserError, nearest
from tagsds.models.layouts.matcher import MatcherLayout, Options
from tagsds.models.layouts.rules import COUNTER, fit, give_all, matrix_shape, take_all
from tagsds.models.matchers import MATCHERS, Matcher
from tagsds.models.published.files import STATES, Published
from tagsds.models.published.uniter import Converted


def layouts() -> dict[str, MatcherLayout]:
    """The layouts of the matchers that have one, by the matcher's name."""
    return {name: kind.layout for name, kind in MATCHERS.items() if kind.layout is not None}


def kind_of(published: Published, asked: str) -> str:
    """The matcher's name in the registry: as asked, or by what only one of them has."""
    if asked != "auto":
        return asked
    for name, layout in layouts().items():
        if layout.recognises(published.tensors, published.options):
            return name
    *most, last = layouts()
    raise UserError(
        f"{published.path} does not say which matcher it is of; name it with --layout ({', '.join(most)} or {last})."
    )


def from_matcher(published: Published, kind: str, options: dict[str, Any]) -> Converted:
    """`options` adds to those in the file, or replaces them."""
    layout, path = layout_of(kind), published.path
    known = {*layout.needed, *layout.choices}
    if strange := sorted(set(options) - known):
        raise UserError(f"--option {strange[0]} is none of {kind}'s: {nearest(strange[0], known)}")
    theirs = {key.replace(".module.", ".", 1): value for key, value in published.tensors.items()}
    trained = Options(path, published.options | options)
    record: dict[str, Any] = {"layout": kind, "source": path.name}
    record["options"] = {key: value for key, value in trained.values.items() if is_plain(value)}
    record["keys"] = {key: str(value.dtype).removeprefix("torch.") for key, value in theirs.items()}
    notes = []
    if "img.fc.weight_g" in theirs and "img.fc.weight_v" in theirs:  # weight normalisation of the whole matrix
        if theirs["img.fc.weight_g"].numel() != 1:
            raise UserError(f"{path} has img.fc.weight_g of shape {list(theirs['img.fc.weight_g'].shape)}; one number is expected.")
        direction = theirs.pop("img.fc.weight_v")
        theirs["img.fc.weight"] = theirs.pop("img.fc.weight_g") * direction / direction.norm()
        record["keys"] = {}
        notes.append("the weight normalisation of the image projection is multiplied out")
    rules = layout.rules_of_file(theirs)
    for rule in rules:  # torch did not always count batches
        if rule.ours.endswith(COUNTER):
            theirs.setdefault(rule.theirs[0], torch.zeros((), dtype=torch.int64))
    ours = take_all(rules, theirs, path)
    vocab_size, word_size = matrix_shape(theirs, "txt.embed.weight", path)
    embed_size, region_dim = matrix_shape(theirs, "img.fc.weight", path)
    sizes = {"vocab_size": vocab_size, "word_size": word_size, "embed_size": embed_size, "region_dim": region_dim}
    layout.refuse_other_formulas(trained)
    config = MATCHERS[kind].config(**sizes, **layout.settings(theirs, trained))
    torch.manual_seed(0)
    model = MATCHERS[kind].model(config)
    fit(ours, model.state_dict(), path)
    model.load_state_dict(ours, strict=False)
    size = f"joint space of {embed_size}, {vocab_size} words, regions of {region_dim}"
    return Converted(model.eval(), size, notes=notes + layout.notes(theirs), record=record)


def to_matcher(model: Matcher, record: dict[str, Any] | None, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The states and the options that shape the model, as the repository's training saves them; its evaluation also wants options
    of its training, which are there only where `record` has them. `record`, `dtype` as in `to_uniter`.

    Of VSRN the captioner is a third state, as in AOQ's files; but a file that came with two goes back with two.
    """
    config, record = model.config, record or {}
    layout = layout_of(name_of(model))
    theirs = give_all(layout.rules_of_model(model), {name: value.detach() for name, value in model.state_dict().items()})
    kinds: dict[str, str] = record.get("keys") or {}
    states: dict[str, dict[str, Tensor]] = {part: {} for part in STATES}
    for key in kinds or theirs:
        side, name = key.split(".", 1)
        kept = getattr(torch, kinds[key]) if key in kinds else theirs[key].dtype
        states[side][name] = theirs[key].to(dtype if dtype and kept.is_floating_point else kept).clone()
    states = {part: state for part, state in states.items() if state}
    options = layout.default_options(config) | record.get("options", {}) | layout.needed
    options |= {"vocab_size": config.vocab_size, "img_dim": config.region_dim, "word_dim": config.word_size}
    options |= {"embed_size": config.embed_size, "precomp_enc_type": "basic", **layout.options(config, states)}
    opt = argparse.Namespace(**options)
    return {"epoch": 0, "model": list(states.values()), "best_rsum": 0.0, "opt": opt, "Eiters": 0}


def name_of(model: Any) -> str:
    """The name of a model's kind in the registry of matchers; empty for a model that is not a matcher."""
    return next((name for name, kind in MATCHERS.items() if kind.model is type(model)), "")


def layout_of(kind: str) -> MatcherLayout:
    """UserError for a matcher that no other code has checkpoints of."""
    layout = MATCHERS[kind].layout
    if layout is None:
        raise UserError(f"a matcher of kind {kind} has no published layout; its Hugging Face folder is its only form.")
    return layout


def is_plain(value: Any) -> bool:
    """Whether JSON keeps it."""
    return value is None or isinstance(value, bool | int | float | str)
