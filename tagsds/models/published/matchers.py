"""Checkpoints of the repositories of VSRN (arXiv 1909.02701), SCAN (1803.08024) and BFAN (1909.11416), and of AOQ's on top.

All save {"model": [state of the image half, state of the text half], "opt": the options of the training, ...}; what the matrices
mean is in the options. AOQ's VSRN adds a third state, that of the captioner, which VSRN's own training does not save.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.errors import UserError, nearest
from tagsds.models.matchers import MATCHERS, Matcher
from tagsds.models.published.files import STATES, Published
from tagsds.models.published.layout import COUNTER, Rule, copies, fit, give_all, matrix_shape, take_all
from tagsds.models.published.uniter import Converted

GRU = tuple(f"{kind}_{part}_l0" for kind in ("weight", "bias") for part in ("ih", "hh"))
BOTH_WAYS = (*GRU, *(f"{name}_reverse" for name in GRU))
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
POOLINGS = {"LogSumExp": "lse", "Mean": "avg"}
NEEDED: dict[str, dict[str, Any]] = {  # options that other formulas stand behind
    "vsrn": {"use_abs": False, "no_imgnorm": False, "num_layers": 1, "measure": "cosine"},
    "scan": {"raw_feature_norm": "clipped_l2norm", "bi_gru": True, "no_imgnorm": False, "no_txtnorm": False, "num_layers": 1},
    "bfan": {"no_imgnorm": False, "no_txtnorm": False, "num_layers": 1},
}


CAPTIONER_NEEDED = {"rnn_type": "gru", "bidirectional": 0}  # the same of VSRN's captioner
SETTINGS: dict[str, tuple[str, ...]] = {  # options that choose among ours
    "vsrn": ("input_dropout_p", "max_len"),
    "scan": ("cross_attn", "agg_func", "lambda_softmax", "lambda_lse"),
    "bfan": ("focal_type", "lambda_softmax"),
}


def kind_of(published: Published, asked: str) -> str:
    """vsrn, scan or bfan: as asked, or by what only one of them has."""
    if asked != "auto":
        return asked
    if any(key.startswith("img.Rs_GCN_") for key in published.tensors):
        return "vsrn"
    for option, kind in (("focal_type", "bfan"), ("cross_attn", "scan")):
        if option in published.options:
            return kind
    raise UserError(f"{published.path} does not say which matcher it is of; name it with --layout (vsrn, scan or bfan).")


def captioner_rules() -> list[Rule]:
    """VSRN's third state."""
    parts = {"encoder.vid2hid": "region", "decoder.attention.linear1": "attention", "decoder.out": "next_word"}
    rules = copies((f"cap.{theirs}", f"captioner.{ours}") for theirs, ours in parts.items())
    weights = {"decoder.embedding": "word", "decoder.attention.linear2": "score"}
    rules += copies(((f"cap.{theirs}", f"captioner.{ours}") for theirs, ours in weights.items()), ["weight"])
    rules += copies([("cap.encoder.rnn", "captioner.region_gru")], GRU)
    return rules + [Rule(f"captioner.cell.{name.removesuffix('_l0')}", (f"cap.decoder.rnn.{name}",)) for name in GRU]


def matcher_rules(kind: str, layers: int, image_norm: bool) -> list[Rule]:
    rules = copies([("img.fc", "project")]) + copies([("txt.embed", "text.word")], ["weight"])
    rules += copies([("txt.rnn", "text.gru")], GRU if kind == "vsrn" else BOTH_WAYS)
    if kind != "vsrn":
        return rules
    rules += copies([("img.img_rnn", "region_gru")], GRU)
    for n in range(layers):
        theirs, ours = f"img.Rs_GCN_{n + 1}", f"graph.{n}"
        for conv, name in (("g", "g"), ("theta", "theta"), ("phi", "phi"), ("W.0", "out")):  # convolutions of width 1
            key = f"{theirs}.{conv}.weight"
            rules.append(Rule(f"{ours}.{name}.weight", (key,), lambda v: v.squeeze(-1), lambda v: v.unsqueeze(-1)))
            rules.append(Rule(f"{ours}.{name}.bias", (f"{theirs}.{conv}.bias",)))
        rules += copies([(f"{theirs}.W.1", f"{ours}.norm")], NORM)
    return rules + (copies([("img.bn", "image_norm")], NORM) if image_norm else [])


def settings_of(kind: str, options: dict[str, Any], path: Path, image_norm: bool) -> dict[str, Any]:
    """Our config's settings from the training's options. UserError where an option is absent or stands for another formula."""
    for key, needed in NEEDED[kind].items():
        if options.get(key, needed) != needed:
            raise UserError(f"{path} was trained with {key}={options[key]}; only {key}={needed} is built here.")

    def option(key: str) -> Any:
        if key not in options:
            raise UserError(f"{path} does not carry the option {key} of its training; give it with --option {key}=VALUE.")
        return options[key]

    def number(key: str) -> float:
        value = option(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path} has {key}={value!r} among its options, which is no number; give --option {key}=NUMBER.")
        return float(value)

    if kind == "vsrn":  # its Flickr30K model has the one norm and not the other
        return {"column_norm": True, "input_norm": not image_norm, **captioner_settings(options, path)}
    if kind == "bfan":
        return {"focal": option("focal_type"), "lambda_softmax": number("lambda_softmax")}
    pooling = option("agg_func")
    if not isinstance(pooling, str) or pooling not in POOLINGS:
        raise UserError(f"{path} was trained with agg_func={pooling}; only {' and '.join(POOLINGS)} are built here.")
    numbers = {key: number(key) for key in ("lambda_softmax", "lambda_lse")}
    return {"direction": option("cross_attn"), "pooling": POOLINGS[pooling], **numbers}


def captioner_settings(options: dict[str, Any], path: Path) -> dict[str, Any]:
    """The released defaults where the options lack them."""
    dropout, pieces = options.get("input_dropout_p", 0.2), options.get("max_len", 60)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"{path} was trained with input_dropout_p={dropout}; give --option input_dropout_p=NUMBER, below 1.")
    if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 2:
        raise UserError(f"{path} was trained with max_len={pieces}; give --option max_len=NUMBER, 2 or more.")
    return {"caption_dropout": float(dropout), "caption_pieces": pieces}


def captioner_sizes(theirs: dict[str, Tensor], options: dict[str, Any], path: Path) -> dict[str, int]:
    """Read off the third state. UserError where the options say another size, or another formula."""
    hidden, inputs = matrix_shape(theirs, "cap.encoder.vid2hid.weight", path)
    word = matrix_shape(theirs, "cap.decoder.embedding.weight", path)[1]
    for key, size in {"dim_hidden": hidden, "dim_word": word, "dim_vid": inputs}.items():
        if options.get(key, size) != size:
            raise UserError(f"{path} says {key}={options[key]} and its captioner has {size}; give the options of this checkpoint.")
    for key, needed in CAPTIONER_NEEDED.items():
        value = options.get(key, needed)
        if (value.lower() if isinstance(value, str) else value) != needed:
            raise UserError(f"{path} has a captioner with {key}={value}; only {key}={needed} is built here.")
    return {"caption_hidden": hidden, "caption_word_size": word}


def from_matcher(published: Published, kind: str, options: dict[str, Any]) -> Converted:
    """`options` adds to those in the file, or replaces them."""
    known = {*NEEDED[kind], *SETTINGS[kind], *(CAPTIONER_NEEDED if kind == "vsrn" else ())}
    if strange := sorted(set(options) - known):
        raise UserError(f"--option {strange[0]} is none of {kind}'s: {nearest(strange[0], known)}")
    path, theirs = published.path, {key.replace(".module.", ".", 1): value for key, value in published.tensors.items()}
    options = published.options | options
    record = {"layout": kind, "source": path.name, "options": {k: v for k, v in options.items() if is_plain(v)}}
    record["keys"] = {key: str(value.dtype).removeprefix("torch.") for key, value in theirs.items()}
    notes = []
    if "img.fc.weight_g" in theirs and "img.fc.weight_v" in theirs:  # weight normalisation of the whole matrix
        if theirs["img.fc.weight_g"].numel() != 1:
            raise UserError(f"{path} has img.fc.weight_g of shape {list(theirs['img.fc.weight_g'].shape)}; one number is expected.")
        direction = theirs.pop("img.fc.weight_v")
        theirs["img.fc.weight"] = theirs.pop("img.fc.weight_g") * direction / direction.norm()
        record["keys"] = {}
        notes.append("the weight normalisation of the image projection is multiplied out")
    layers = len({key.split(".")[1] for key in theirs if key.startswith("img.Rs_GCN_")})
    image_norm = "img.bn.weight" in theirs
    taught = kind == "vsrn" and any(key.startswith("cap.") for key in theirs)
    rules = matcher_rules(kind, layers, image_norm) + (captioner_rules() if taught else [])
    for rule in rules:  # torch did not always count batches
        if rule.ours.endswith(COUNTER):
            theirs.setdefault(rule.theirs[0], torch.zeros((), dtype=torch.int64))
    ours = take_all(rules, theirs, path)
    vocab_size, word_size = matrix_shape(theirs, "txt.embed.weight", path)
    embed_size, region_dim = matrix_shape(theirs, "img.fc.weight", path)
    sizes = {"vocab_size": vocab_size, "word_size": word_size, "embed_size": embed_size, "region_dim": region_dim}
    if kind == "vsrn":
        sizes |= {"graph_layers": layers, "image_norm": image_norm}
        if taught:
            sizes |= captioner_sizes(theirs, options, path)
        else:
            notes.append("initialised at random: the captioner, which the file does not carry")
    config_class, model_class = MATCHERS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**sizes, **settings_of(kind, options, path, image_norm)))
    fit(ours, model.state_dict(), path)
    model.load_state_dict(ours, strict=False)
    return Converted(model.eval(), notes=notes, record=record)


def to_matcher(model: Matcher, record: dict[str, Any] | None, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """The states and the options that shape the model, as the repository's training saves them; its evaluation also wants options
    of its training, which are there only where `record` has them. `record`, `dtype` as in `to_uniter`.

    Of VSRN the captioner is a third state, as in AOQ's files; but a file that came with two goes back with two.
    """
    config, record = model.config, record or {}
    kind = next(name for name, (_, model_class) in MATCHERS.items() if isinstance(model, model_class))
    if kind == "vsrn" and not config.column_norm:
        raise UserError(
            "this VSRN normalises each region (column_norm false), the released code each feature over the regions: "
            "it would compute something else from these weights, so they are not written for it."
        )
    if kind == "vsrn" and config.input_norm == config.image_norm:
        has = "both input_norm and image_norm" if config.image_norm else "neither input_norm nor image_norm"
        raise UserError(
            f"this VSRN has {has}, the released code one of them (input_norm for COCO, image_norm for Flickr30K): "
            "it would compute something else from these weights, so they are not written for it."
        )
    rules = matcher_rules(kind, getattr(config, "graph_layers", 0), getattr(config, "image_norm", False))
    taught = getattr(model, "captioner", None) is not None
    rules += captioner_rules() if taught else []
    theirs = give_all(rules, {name: value.detach() for name, value in model.state_dict().items()})
    kinds: dict[str, str] = record.get("keys") or {}
    states: dict[str, dict[str, Tensor]] = {part: {} for part in STATES}
    for key in kinds or theirs:
        side, name = key.split(".", 1)
        kept = getattr(torch, kinds[key]) if key in kinds else theirs[key].dtype
        states[side][name] = theirs[key].to(dtype if dtype and kept.is_floating_point else kept).clone()
    options = record.get("options", {}) | NEEDED[kind] | options_of(kind, config)
    if kind == "vsrn":  # its code chooses the norms by the name of the data
        options = {"data_name": "f30k_precomp" if config.image_norm else "coco_precomp"} | options
    if states["cap"]:
        options |= captioner_options(config)
    opt = argparse.Namespace(**options)
    return {"epoch": 0, "model": [state for state in states.values() if state], "best_rsum": 0.0, "opt": opt, "Eiters": 0}


def options_of(kind: str, config: Any) -> dict[str, Any]:
    """The repository's options for a config of ours."""
    options: dict[str, Any] = {"vocab_size": config.vocab_size, "img_dim": config.region_dim, "word_dim": config.word_size}
    options |= {"embed_size": config.embed_size, "precomp_enc_type": "basic"}
    if kind == "bfan":
        options |= {"focal_type": config.focal, "lambda_softmax": config.lambda_softmax}
    if kind == "scan":
        pooling = next(theirs for theirs, ours in POOLINGS.items() if ours == config.pooling)
        options |= {"cross_attn": config.direction, "agg_func": pooling, "lambda_softmax": config.lambda_softmax}
        options |= {"lambda_lse": config.lambda_lse}
    return options


def captioner_options(config: Any) -> dict[str, Any]:
    sizes = {"dim_vid": config.embed_size, "dim_hidden": config.caption_hidden, "dim_word": config.caption_word_size}
    return {**sizes, "input_dropout_p": config.caption_dropout, "max_len": config.caption_pieces, **CAPTIONER_NEEDED}


def is_plain(value: Any) -> bool:
    """Whether JSON keeps it."""
    return value is None or isinstance(value, bool | int | float | str)
