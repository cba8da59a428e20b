"""UNITER's layout, which TAGS shares, and BERT's, which is its text half (arXiv 1909.11740; 1810.04805).

Both are `UniterModel` under other names: query, key and value lie apart, the decoders of words are written out though they are
tied, and the embedding that hides a region has a row of zeros for those that are not hidden.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagsds.errors import UserError
from tagsds.models.layouts.rules import Rule, copies, fit, give_all, matrix_shape, take_all
from tagsds.models.published.files import Published
from tagsds.models.uniter import UniterModel
from tagsds.models.uniter.config import UniterConfig
from tagsds.models.uniter.initialise import initialise_heads

WORDS = "uniter.embeddings.word_embeddings.weight"
IMAGE = "uniter.img_embeddings."
MASK = IMAGE + "mask_embedding.weight"
HEADS = {
    "itm": "itm_output.",
    "rank": "rank_output.",
    "mlm": "cls.",
    "discriminate": "disc_output.",
    "correct": "correction_output.",
    "region_feature": "feat_regress.",
    "region_class": "region_classifier.",
}
HEAD_WIDTH = 64  # of base and large, and of BERT's
TEXT_HALF = {"region_dim": 2048, "num_region_classes": 1601}  # UNITER's regions, for BERT, which has none
FRACTIONS = ("layer_norm_eps", "initializer_range")
MOST_PADDING = 7  # rows that UNITER adds to reach a multiple of 8, for speed in half precision
CONFIG_KEYS = {  # of a BERT-type config file -> of ours
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "max_position_embeddings", "layer_norm_eps", "initializer_range",
}  # fmt: skip


@dataclass
class Converted:
    """A model of ours from a published file; `size` in words; `found` and `begun` name heads (`found` None: it has no heads),
    `notes` what a reader should know, `record` what the way back needs (published.json)."""

    model: Any
    size: str
    found: list[str] | None = None
    begun: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def heads(self) -> list[str]:
        """Lines for the user."""
        found = [] if self.found is None else [f"heads found: {', '.join(self.found) or 'none'}"]
        return found + ([f"heads begun: {', '.join(self.begun)}"] if self.begun else [])


def canonical(key: str) -> str:
    """UNITER's own spelling of a key: `uniter.` before the encoder, `weight` and `bias` in LayerNorm.

    >>> canonical("module.bert.embeddings.LayerNorm.gamma")
    'uniter.embeddings.LayerNorm.weight'
    """
    key = key.removeprefix("module.")
    if key.startswith("bert."):
        key = "uniter." + key.removeprefix("bert.")
    elif key.startswith(("embeddings.", "img_embeddings.", "encoder.", "pooler.")):
        key = "uniter." + key
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        key = key[: -len(old)] + new if key.endswith(old) else key
    return key


def is_left_out(key: str) -> bool:
    """What carries no weight of the model: a table of positions, and BERT's head for the next sentence."""
    return key.endswith("embeddings.position_ids") or key.startswith("cls.seq_relationship.")


def encoder_rules(layers: int, image: bool, pooler: bool) -> list[Rule]:
    names = [("uniter.embeddings.LayerNorm", "text_embedding.norm")]
    embeddings = {"word_embeddings": "word", "position_embeddings": "position", "token_type_embeddings": "token_type"}
    rules = copies(
        ((f"uniter.embeddings.{theirs}", f"text_embedding.{ours}") for theirs, ours in embeddings.items()), ["weight"]
    )
    if image:
        parts = {"img_linear": "feature", "img_layer_norm": "feature_norm", "pos_linear": "box", "pos_layer_norm": "box_norm",
                 "LayerNorm": "norm"}  # fmt: skip
        names += [(IMAGE + theirs, f"image_embedding.{ours}") for theirs, ours in parts.items()]
        rules.append(Rule("image_embedding.mask", (MASK,), lambda v: v[1], lambda v: torch.stack([torch.zeros_like(v), v])))
    for n in range(layers):
        theirs, ours = f"uniter.encoder.layer.{n}", f"layers.{n}"
        for end in ("weight", "bias"):
            apart = tuple(f"{theirs}.attention.self.{part}.{end}" for part in ("query", "key", "value"))
            rules.append(Rule(f"{ours}.qkv.{end}", apart))
        parts = {"attention.output.dense": "attention_out", "attention.output.LayerNorm": "attention_norm",
                 "intermediate.dense": "expand", "output.dense": "contract", "output.LayerNorm": "norm"}  # fmt: skip
        names += [(f"{theirs}.{part}", f"{ours}.{name}") for part, name in parts.items()]
    if pooler:
        names.append(("uniter.pooler.dense", "pooler.dense"))
    return rules + copies(names)


def head_rules(heads: list[str]) -> list[Rule]:
    rules: list[Rule] = []
    for head in heads:
        theirs = HEADS[head].removesuffix(".")
        if head in ("mlm", "correct"):
            words = f"{theirs}.predictions"
            parts = {"dense": "dense", "LayerNorm": "norm"}
            rules += copies((f"{words}.transform.{part}", f"{head}.transform.{name}") for part, name in parts.items())
            rules.append(Rule(f"{head}.decoder.bias", (f"{words}.bias",)))
            rules.append(Rule("", (f"{words}.decoder.weight",), same_as=WORDS))
            rules.append(Rule("", (f"{words}.decoder.bias",), same_as=f"{words}.bias"))  # newer BERT files
        elif head in ("region_feature", "region_class"):
            rules += copies([(f"{theirs}.net.0", f"{head}.transform.dense"), (f"{theirs}.net.2", f"{head}.transform.norm")])
            if head == "region_class":
                rules += copies([(f"{theirs}.net.3", f"{head}.decoder")])
            else:
                rules.append(Rule("", (f"{theirs}.weight",), same_as=IMAGE + "img_linear.weight"))
                rules.append(Rule(f"{head}.bias", (f"{theirs}.bias",)))
        else:
            rules += copies([(theirs, head)])
    return rules


def from_uniter(published: Published, given: dict[str, Any], vocabulary: int | None, ignored: tuple[str, ...] = ()) -> Converted:
    """A UNITER, TAGS or BERT file as a UniterModel (fp32).

    given        sizes that the tensors do not tell or must agree with: keys of a BERT-type config, and for BERT's text half
                 region_dim and num_region_classes
    vocabulary   pieces of the tokenizer, or None: as many as the file has rows
    ignored      beginnings of keys to leave out
    """
    path = published.path
    spelt = {key: canonical(key) for key in published.tensors}
    if twice := [name for name, count in Counter(spelt.values()).items() if count > 1]:
        raise UserError(f"{path} holds {twice[0]} in two spellings; give a file with one of them.")
    out = [key for key, name in spelt.items() if is_left_out(name) or (ignored and key.startswith(ignored))]
    theirs = {name: published.tensors[key] for key, name in spelt.items() if key not in out}
    if WORDS not in theirs:
        raise UserError(
            f"{path} has no word embeddings ({WORDS}), so it is no UNITER, TAGS or BERT checkpoint; "
            "name the layout with --layout if it is a matcher's."
        )
    notes = [f"left out: {', '.join(out)}"] if out else []
    theirs, padding = without_padding(theirs, vocabulary, path)
    if padding:
        notes.append(f"{padding} rows of zeros behind the vocabulary left out")
    image = any(name.startswith(IMAGE) for name in theirs)
    pooler = image or any(name.startswith("uniter.pooler.") for name in theirs)
    found = [head for head, begin in HEADS.items() if any(name.startswith(begin) for name in theirs)]
    config = config_of(theirs, given, image, path)
    rules = encoder_rules(config.num_hidden_layers, image, pooler) + head_rules(found)
    ours = take_all(rules, theirs, path)
    if image and bool(theirs[MASK][0].any()):
        notes.append(f"row 0 of {MASK} is not kept: the layout sets it to zero before each use")

    config.trained_heads = sorted(found)
    torch.manual_seed(0)  # what the file lacks begins the same in every conversion
    model = UniterModel(config)
    fit(ours, model.state_dict(), path)
    model.load_state_dict(ours, strict=False)
    model.tie_weights()
    notes += [f"initialised at random: {part}" for part, held in (("the image half", image), ("the pooler", pooler)) if not held]
    begun = initialise_heads(model, list(HEADS))
    fresh = [head for head in HEADS if head not in found and not any(text.startswith(f"{head} ") for text in begun)]
    notes += [f"heads initialised at random: {', '.join(fresh)}"] if fresh else []
    keys = {key: [name, str(published.tensors[key].dtype).removeprefix("torch.")] for key, name in spelt.items() if key not in out}
    record = {"layout": "uniter" if image else "bert", "source": path.name, "vocabulary_padding": padding, "keys": keys}
    width, head_count = config.hidden_size, config.num_attention_heads
    size = f"{config.num_hidden_layers} layers of {width}, {head_count} heads of {width // head_count}"
    size += f", {config.vocab_size} word pieces, regions of {config.region_dim}"
    return Converted(model.eval(), size, found, begun, notes, record)


def without_padding(theirs: dict[str, Tensor], vocabulary: int | None, path: Path) -> tuple[dict[str, Tensor], int]:
    """Rows behind the vocabulary removed from everything that has a row a word piece, and how many they were."""
    rows = len(theirs[WORDS])
    padding = rows - (vocabulary if vocabulary is not None else rows)
    if not padding:
        return theirs, 0
    behind = [value[vocabulary:] for name, value in theirs.items() if has_vocabulary(name)] if padding > 0 else []
    if not 0 < padding <= MOST_PADDING or rows % (MOST_PADDING + 1) or any(value.any() for value in behind):
        raise UserError(
            f"{path} has {rows} word pieces and the tokenizer {vocabulary}; give the tokenizer the checkpoint was trained with."
        )
    return {name: value[:vocabulary] if has_vocabulary(name) else value for name, value in theirs.items()}, padding


def has_vocabulary(name: str) -> bool:
    """Whether the first dimension of a key (canonical) is the vocabulary."""
    return name == WORDS or name.endswith((".predictions.bias", ".predictions.decoder.weight", ".predictions.decoder.bias"))


def config_of(theirs: dict[str, Tensor], given: dict[str, Any], image: bool, path: Path) -> UniterConfig:
    """Sizes read off the tensors; `given` adds what they do not tell, and may not contradict them."""
    if given.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"the config has hidden_act '{given['hidden_act']}' and this model the exact 'gelu' only; it would differ.")
    given = {key: number(key, given[key]) for key in (*CONFIG_KEYS, *TEXT_HALF) if key in given}
    layers = {name.split(".")[3] for name in theirs if name.startswith("uniter.encoder.layer.")}
    rows, width = matrix_shape(theirs, WORDS, path)
    sizes = {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "intermediate_size": matrix_shape(theirs, "uniter.encoder.layer.0.intermediate.dense.weight", path)[0],
        "max_position_embeddings": matrix_shape(theirs, "uniter.embeddings.position_embeddings.weight", path)[0],
    }
    if image:
        classes = theirs.get("region_classifier.net.3.weight")
        sizes["region_dim"] = matrix_shape(theirs, IMAGE + "img_linear.weight", path)[1]
        matrix_shape(theirs, MASK, path)  # two rows, of which the second is read
        sizes["num_region_classes"] = len(classes) if classes is not None else 0
    for key, value in sizes.items():
        padded = key == "vocab_size" and 0 <= given.get(key, value) - value <= MOST_PADDING  # a config may count the padding
        if given.get(key, value) != value and not padded and (key != "num_region_classes" or classes is not None):
            raise UserError(f"{path} has {key} {value}, the config says {given[key]}; give the config of this checkpoint.")
    heads = given.get("num_attention_heads", width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 0)
    if not heads or width % heads:
        raise UserError(
            f"the number of attention heads cannot be told from a width of {width}; give --config with num_attention_heads."
        )
    return UniterConfig(**((given if image else TEXT_HALF | given) | sizes | {"num_attention_heads": heads}))


def number(key: str, value: Any) -> int | float:
    """A config's number: a share of 1, a small fraction, or a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise UserError(f"the config has {key} {value!r}, which is no number; give the config of this checkpoint.")
    if key in FRACTIONS:
        return value
    if value > 1 if key.endswith("_prob") else value != int(value):
        raise UserError(f"the config has {key} {value!r}, which cannot be; give the config of this checkpoint.")
    return value if key.endswith("_prob") else int(value)


def to_uniter(model: UniterModel, record: dict[str, Any] | None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict that UNITER's and TAGS' code loads: encoder and trained heads.

    record   published.json of the folder, where it came from such a file: keys, their order, precision and padding are then
             those of that file; heads trained since follow in UNITER's own spelling
    dtype    precision of everything, instead of the record's (float32 without one)
    """
    record = record if record and record["layout"] == "uniter" else {}  # BERT's own spelling would fit no image half
    rules = encoder_rules(model.config.num_hidden_layers, True, True) + head_rules(
        [head for head in HEADS if head in model.config.trained_heads]
    )
    theirs = give_all(rules, {name: value.detach() for name, value in model.state_dict().items()})
    if padding := record.get("vocabulary_padding", 0):
        theirs = {
            name: torch.cat([value, value.new_zeros(padding, *value.shape[1:])]) if has_vocabulary(name) else value
            for name, value in theirs.items()
        }
    keys: dict[str, list[str]] = dict(record.get("keys", {}))
    usual = Counter(kind for _, kind in keys.values()).most_common(1)[0][0] if keys else "float32"
    known = {name for name, _ in keys.values()}
    heads = {name.split(".")[0] for name in known}
    tied = {rule.theirs[0] for rule in rules if rule.same_as}  # a file that leaves a repeated key out stays without it
    more = [n for n in theirs if n not in known and not (n in tied and (n.endswith("bias") or n.split(".")[0] in heads))]
    keys |= {name: [name, usual] for name in more}
    return {key: theirs[name].to(dtype or getattr(torch, kind)).clone() for key, (name, kind) in keys.items()}
