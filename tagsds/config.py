"""All settings of a run: dataclasses < recipe YAML < command line. OmegaConf parses and checks; an unknown key is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tagsds.config_offline import OfflineConfig, QuintupletConfig, check_offline
from tagsds.errors import UserError, nearest

BASE_SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
RECIPES = Path(__file__).parent / "recipes"


@dataclass
class ModelConfig:
    """Sizes left out are the checkpoint's where `init` names one, and BERT base's from scratch; a size that contradicts the
    checkpoint is an error."""

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    dropout: float = 0.1
    """of hidden states"""
    attention_dropout: float = 0.1
    """of attention weights; 0 lets a CPU use the fused attention in training"""
    initializer_range: float = 0.02
    """standard deviation of fresh weights: BERT's 0.02 suits 768; a narrow model wants about 1 / sqrt(hidden_size)"""


@dataclass
class MatcherSettings:
    """The matcher of objective `matching`; a size or temperature left out is its paper's. With `init`, the checkpoint's count."""

    kind: str = "vsrn"
    """vsrn, scan or bfan"""
    word_size: int = 300
    embed_size: int | None = None
    graph_layers: int = 4
    """VSRN: region-graph convolutions"""
    image_norm: bool = False
    """VSRN: BatchNorm behind the GRU over regions (published for Flickr30K)"""
    caption_hidden: int = 512
    """VSRN: width of the captioning decoder"""
    caption_weight: float = 1.0
    """VSRN: of the captioning loss; 0 builds no decoder"""
    direction: str = "t2i"
    """SCAN: t2i (words attend to regions) or i2t"""
    pooling: str = "lse"
    """SCAN: lse or avg"""
    focal: str = "equal"
    """BFAN: equal or prob"""
    lambda_softmax: float | None = None
    """SCAN, BFAN: inverse temperature of the attention"""
    lambda_lse: float | None = None
    """SCAN: sharpness of LogSumExp"""


@dataclass
class DataConfig:
    split: str = "train"
    max_gib: float = 64.0
    """memory (of the GPU, where there is one) that a rank may fill with the corpus; a larger corpus is walked through in windows
    of shards"""
    window_steps: int = 500
    """steps drawn from one window before the next is loaded"""
    checksum: bool = True
    """hold each shard against the manifest's sha256 while loading"""


@dataclass
class BatchConfig:
    pairs: int = 32
    """true pairs of one micro-batch on one rank; `acc` of the paper is pairs * accumulation"""
    tokens: int = 0
    """if set: `pairs` becomes this many tokens divided by the mean tokens of a pair (of the first window's pairs, where the corpus
    is walked through in windows), and stays so when the run is resumed"""
    accumulation: int = 1
    """micro-batches of one optimiser step on one rank"""


@dataclass
class OptimiserConfig:
    name: str = "adamw"
    """adamw (DeepSpeed's fused one on GPUs, its CPU one under offload, torch's elsewhere) or apex"""
    lr: float = 5e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    weight_decay: float = 0.01
    """not on biases and LayerNorm"""
    clip: float = 2.0
    """largest norm of the gradient; 0 = off"""
    steps: int = 5000
    warmup_steps: int = 500
    """linear warm-up, then linear decay to zero at `steps`"""
    decay_at: list[int] = field(default_factory=list)
    """if given: the rate stays constant instead, and is divided by ten at each of these steps"""


@dataclass
class PretrainConfig:
    mix: dict[str, int] = field(default_factory=lambda: {"itm": 2, "mlm": 2, "mrfr": 1, "mrckl": 1, "mrc": 0})
    """one task per optimiser step, drawn with these odds"""
    mask_probability: float = 0.15
    wra_weight: float = 0.1


@dataclass
class NegativesConfig:
    count: int = 399
    """random images of each caption, and random captions of each image, that are scored"""
    keep: int = 31
    """K: the hardest of them that enter the loss, and the hardest written sentences likewise"""
    shared: bool = False
    """take the other pairs of the micro-batch instead of `count` random ones: one score serves both directions"""
    dtype: str = "model"
    """model or bf16: precision of scores that only choose negatives"""


@dataclass
class SyntheticConfig:
    maskings: int = 20
    refills: int = 20
    tau: float = 1.5
    """temperature of the refilling softmax"""
    mask_probability: float = 0.15


@dataclass
class LossConfig:
    margin: float = 0.2
    t2i: float = 1.0
    i2t: float = 1.0
    syn: float = 0.0
    """lambda_syn; with mlm, disc and corr all zero no sentence is written"""
    mlm: float = 0.0
    disc: float = 0.0
    corr: float = 0.0
    weight_replaced: float = 1.0
    weight_kept: float = 0.11


@dataclass
class LogConfig:
    every: int = 10
    """steps between two rows of TensorBoard and log.jsonl"""
    panel_every: int = 250
    """steps between two text panels"""
    checkpoint_every: int = 500
    """0: only at the end"""
    keep_checkpoints: int = 2
    export_at: list[int] = field(default_factory=list)
    """steps after which a Hugging Face folder export-step<N> is written besides the one at the end"""
    examples: int = 24
    """dev captions whose written negatives go into examples.json at the end"""


@dataclass
class RunConfig:
    """Everything a run depends on besides the shards and the DeepSpeed file."""

    objective: str = "retrieval"
    """pretrain, retrieval (the encoder) or matching (a matcher of models/matchers)"""
    recipe: str = ""
    description: str = ""
    seed: int = 42
    data_folder: str = ""
    init: str = ""
    """a run folder, a folder inside it or a Hugging Face folder to start from; empty: from scratch"""
    model: ModelConfig = field(default_factory=ModelConfig)
    matcher: MatcherSettings = field(default_factory=MatcherSettings)
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    quintuplet: QuintupletConfig = field(default_factory=QuintupletConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    log: LogConfig = field(default_factory=LogConfig)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """The resolved configuration of a recipe (a name in tagsds/recipes or a YAML file) and key=value overrides."""
    path = Path(recipe) if recipe.endswith(".yaml") else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise UserError(f"no recipe '{recipe}': {nearest(recipe, recipe_names())}")
    schema = OmegaConf.structured(RunConfig)
    layers = [*_with_parents(path), (OmegaConf.create({"recipe": path.stem}), str(path))]
    for text in overrides or []:
        if "=" not in text:
            raise UserError(f"'{text}' on the command line is not of the form key=value.")
        try:
            layers.append((OmegaConf.from_dotlist([text]), "the command line"))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{text}' on the command line cannot be read: {' '.join(str(error).split())}") from error
    for layer, where in layers:
        _check_keys(schema, layer, where)
        try:
            schema = OmegaConf.merge(schema, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"{where}: {error.full_key}: {str(error).splitlines()[0]}") from error
    try:
        config = OmegaConf.to_object(schema)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(config, RunConfig)
    check(config)
    return config


def _with_parents(path: Path) -> list[tuple[DictConfig, str]]:
    """A recipe may name another as `base:`; the base's keys come first."""
    try:
        layer = OmegaConf.load(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}, a recipe's base, does not exist; {nearest(path.stem, recipe_names())}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path} holds no mapping of keys to values.")
    base = layer.pop("base", None)
    return [*(_with_parents(path.parent / f"{base}.yaml") if base else []), (layer, str(path))]


def _check_keys(schema: Any, layer: Any, where: str, prefix: str = "") -> None:
    for key in layer:
        if key not in schema:
            raise UserError(f"{where}: unknown key '{prefix}{key}': {nearest(str(key), map(str, schema))}")
        if isinstance(schema[key], DictConfig):
            if not isinstance(layer[key], DictConfig):
                known = ", ".join(map(str, schema[key]))
                raise UserError(f"{where}: '{prefix}{key}' is a group of settings, not a value; set one of them: {known}.")
            _check_keys(schema[key], layer[key], where, f"{prefix}{key}.")


def check(config: RunConfig) -> None:
    """What can be known to be wrong before anything is loaded."""
    for key, (name, known) in {
        "objective": (config.objective, ("pretrain", "retrieval", "matching")),
        "negatives.dtype": (config.negatives.dtype, ("model", "bf16")),
        "optimiser.name": (config.optimiser.name, ("adamw", "apex")),
        "matcher.kind": (config.matcher.kind, ("vsrn", "scan", "bfan")),
        "matcher.direction": (config.matcher.direction, ("t2i", "i2t")),
        "matcher.pooling": (config.matcher.pooling, ("lse", "avg")),
        "matcher.focal": (config.matcher.focal, ("equal", "prob")),
    }.items():
        if name not in known:
            raise UserError(f"{key} '{name}': {nearest(name, known)}")
    positive = {
        "batch.pairs": config.batch.pairs,
        "batch.accumulation": config.batch.accumulation,
        "optimiser.steps": config.optimiser.steps,
        "negatives.count": config.negatives.count,
        "negatives.keep": config.negatives.keep,
        "matcher.word_size": config.matcher.word_size,
        "matcher.embed_size": config.matcher.embed_size or 1,
        "synthetic.maskings": config.synthetic.maskings,
        "synthetic.refills": config.synthetic.refills,
        "synthetic.tau": config.synthetic.tau,
        "log.every": config.log.every,
        "data.window_steps": config.data.window_steps,
        "data.max_gib": config.data.max_gib,
        "quintuplet.alpha": config.quintuplet.alpha,
        "offline.pool": config.offline.pool,
        **{f"model.{name}": getattr(config.model, name) or 1 for name in BASE_SIZES},
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key}={value} must be above zero.")
    shares = {
        "pretrain.mask_probability": config.pretrain.mask_probability,
        "synthetic.mask_probability": config.synthetic.mask_probability,
        "model.dropout": config.model.dropout,
        "model.attention_dropout": config.model.attention_dropout,
    }
    for key, value in shares.items():
        if not 0 <= value < 1:
            raise UserError(f"{key}={value} must be at least 0 and below 1.")
    not_negative = {
        "optimiser.warmup_steps": config.optimiser.warmup_steps,
        "optimiser.clip": config.optimiser.clip,
        "log.checkpoint_every": config.log.checkpoint_every,
        "log.keep_checkpoints": config.log.keep_checkpoints,
        "log.panel_every": config.log.panel_every,
        "quintuplet.weight": config.quintuplet.weight,
        "offline.first": config.offline.first,
        "offline.remine_every": config.offline.remine_every,
        **{f"pretrain.mix.{task}": odds for task, odds in config.pretrain.mix.items()},
    }
    for key, value in not_negative.items():
        if value < 0:
            raise UserError(f"{key}={value} must not be negative.")
    if len(config.optimiser.betas) != 2:
        raise UserError(f"optimiser.betas={config.optimiser.betas} must be two numbers.")
    if config.objective == "pretrain" and sum(config.pretrain.mix.values()) <= 0:
        raise UserError("pretrain.mix gives every task zero odds; set one above zero.")
    check_offline(config.quintuplet, config.offline, config.negatives.shared, config.objective)


def as_dict(config: RunConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def save_config(config: RunConfig, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
