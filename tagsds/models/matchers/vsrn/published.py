"""Checkpoints of VSRN's repository (arXiv 1909.02701), and of AOQ's (2003.03669), which adds the captioner as a third state."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from tagsds.errors import UserError
from tagsds.models.layouts.matcher import GRU, NORM, MatcherLayout, Options, shared_rules
from tagsds.models.layouts.rules import Rule, copies, matrix_shape

CAPTIONER_NEEDED = {"rnn_type": "gru", "bidirectional": 0}  # of the captioner: options with the one value that is built here


class VsrnLayout(MatcherLayout):
    """Two states, or three with the captioner. The released code normalises each feature over the regions: before the graph on
    COCO, behind the GRU (image_norm) on Flickr30K."""

    needed = {"use_abs": False, "no_imgnorm": False, "num_layers": 1, "measure": "cosine"}  # noqa: RUF012
    choices = ("input_dropout_p", "max_len", *CAPTIONER_NEEDED)

    def recognises(self, keys: Collection[str], options: Mapping[str, Any]) -> bool:
        return any(key.startswith("img.Rs_GCN_") for key in keys)

    def rules_of_file(self, keys: Collection[str]) -> list[Rule]:
        return rules(layers_of(keys), "img.bn.weight" in keys, taught(keys))

    def rules_of_model(self, model: Any) -> list[Rule]:
        config = model.config
        if not config.column_norm:
            raise UserError(
                "this VSRN normalises each region (column_norm false), the released code each feature over the regions: "
                "it would compute something else from these weights, so they are not written for it."
            )
        if config.input_norm == config.image_norm:
            has = "both input_norm and image_norm" if config.image_norm else "neither input_norm nor image_norm"
            raise UserError(
                f"this VSRN has {has}, the released code one of them (input_norm for COCO, image_norm for Flickr30K): "
                "it would compute something else from these weights, so they are not written for it."
            )
        return rules(config.graph_layers, config.image_norm, model.captioner is not None)

    def settings(self, theirs: Mapping[str, Tensor], options: Options) -> dict[str, Any]:
        image_norm = "img.bn.weight" in theirs
        found = {"graph_layers": layers_of(theirs), "image_norm": image_norm, "column_norm": True, "input_norm": not image_norm}
        if taught(theirs):
            found |= captioner_sizes(theirs, options)
        return found | captioner_settings(options)

    def notes(self, keys: Collection[str]) -> list[str]:
        return [] if taught(keys) else ["initialised at random: the captioner, which the file does not carry"]

    def options(self, config: Any, parts: Collection[str]) -> dict[str, Any]:
        if "cap" not in parts:
            return {}
        sizes = {"dim_vid": config.embed_size, "dim_hidden": config.caption_hidden, "dim_word": config.caption_word_size}
        return {**sizes, "input_dropout_p": config.caption_dropout, "max_len": config.caption_pieces, **CAPTIONER_NEEDED}

    def default_options(self, config: Any) -> dict[str, Any]:
        """The released code chooses the norms by the name of the data."""
        return {"data_name": "f30k_precomp" if config.image_norm else "coco_precomp"}


def layers_of(keys: Collection[str]) -> int:
    return len({key.split(".")[1] for key in keys if key.startswith("img.Rs_GCN_")})


def taught(keys: Collection[str]) -> bool:
    """Whether a captioner is in the file."""
    return any(key.startswith("cap.") for key in keys)


def rules(layers: int, image_norm: bool, captioner: bool) -> list[Rule]:
    """One rule a parameter of a VSRN with so many graph layers."""
    found = shared_rules(GRU) + copies([("img.img_rnn", "region_gru")], GRU)
    for n in range(layers):
        theirs, ours = f"img.Rs_GCN_{n + 1}", f"graph.{n}"
        for conv, name in (("g", "g"), ("theta", "theta"), ("phi", "phi"), ("W.0", "out")):  # convolutions of width 1
            key = f"{theirs}.{conv}.weight"
            found.append(Rule(f"{ours}.{name}.weight", (key,), lambda v: v.squeeze(-1), lambda v: v.unsqueeze(-1)))
            found.append(Rule(f"{ours}.{name}.bias", (f"{theirs}.{conv}.bias",)))
        found += copies([(f"{theirs}.W.1", f"{ours}.norm")], NORM)
    found += copies([("img.bn", "image_norm")], NORM) if image_norm else []
    return found + (captioner_rules() if captioner else [])


def captioner_rules() -> list[Rule]:
    """The third state."""
    parts = {"encoder.vid2hid": "region", "decoder.attention.linear1": "attention", "decoder.out": "next_word"}
    found = copies((f"cap.{theirs}", f"captioner.{ours}") for theirs, ours in parts.items())
    weights = {"decoder.embedding": "word", "decoder.attention.linear2": "score"}
    found += copies(((f"cap.{theirs}", f"captioner.{ours}") for theirs, ours in weights.items()), ["weight"])
    found += copies([("cap.encoder.rnn", "captioner.region_gru")], GRU)
    return found + [Rule(f"captioner.cell.{name.removesuffix('_l0')}", (f"cap.decoder.rnn.{name}",)) for name in GRU]


def captioner_settings(options: Options) -> dict[str, Any]:
    """The released defaults where the options lack them."""
    path, dropout, pieces = options.path, options.values.get("input_dropout_p", 0.2), options.values.get("max_len", 60)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"{path} was trained with input_dropout_p={dropout}; give --option input_dropout_p=NUMBER, below 1.")
    if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 2:
        raise UserError(f"{path} was trained with max_len={pieces}; give --option max_len=NUMBER, 2 or more.")
    return {"caption_dropout": float(dropout), "caption_pieces": pieces}


def captioner_sizes(theirs: Mapping[str, Tensor], options: Options) -> dict[str, int]:
    """Read off the third state. UserError where the options say another size, or another formula."""
    path, values = options.path, options.values
    hidden, inputs = matrix_shape(theirs, "cap.encoder.vid2hid.weight", path)
    word = matrix_shape(theirs, "cap.decoder.embedding.weight", path)[1]
    for key, size in {"dim_hidden": hidden, "dim_word": word, "dim_vid": inputs}.items():
        if values.get(key, size) != size:
            raise UserError(f"{path} says {key}={values[key]} and its captioner has {size}; give the options of this checkpoint.")
    for key, needed in CAPTIONER_NEEDED.items():
        value = values.get(key, needed)
        if (value.lower() if isinstance(value, str) else value) != needed:
            raise UserError(f"{path} has a captioner with {key}={value}; only {key}={needed} is built here.")
    return {"caption_hidden": hidden, "caption_word_size": word}
