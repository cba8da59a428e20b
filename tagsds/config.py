"""All settings of a run: dataclasses < recipe YAML < command line. OmegaConf parses and checks; an unknown key is an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tagsds.data.source import DataConfig
from tagsds.errors import UserError, nearest
from tagsds.evaluators.settings import ValidateConfig
from tagsds.losses.quintuplet import KINDS, QuintupletConfig
from tagsds.models.matchers.settings import MatcherSettings
from tagsds.models.uniter.settings import BASE_SIZES, ModelConfig
from tagsds.negatives.offline import OfflineConfig, needs_candidates
from tagsds.negatives.random import NegativesConfig
from tagsds.negatives.writer import SyntheticConfig
from tagsds.objectives import OBJECTIVES
from tagsds.objectives.retrieval.settings import LossConfig
from tagsds.objectives.settings import PretrainConfig

RECIPES = Path(__file__).parent / "recipes"


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
    eps: float = 1.0e-6
    """added to the root of Adam's second moment; the published encoder runs use 1e-6 (gradients of the down-weighted terms are
    as small as 1e-8), the matchers 1e-8"""
    eps_uncorrected: bool = False
    """add eps to the root of the second moment before its bias is corrected, as the AdamW of the published encoder runs does: in
    the usual form eps / sqrt(1 - beta2^t) at step t, 7 eps at the first one and eps in the long run"""
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
    """by name in `tagsds.objectives.OBJECTIVES`: pretrain, retrieval (the encoder) or matching (a matcher of models/matchers)"""
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
    validate: ValidateConfig = field(default_factory=ValidateConfig)
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
        "objective": (config.objective, tuple(OBJECTIVES)),
        "negatives.dtype": (config.negatives.dtype, ("model", "bf16")),
        "optimiser.name": (config.optimiser.name, ("adamw", "apex")),
        "pretrain.kl_reduction": (config.pretrain.kl_reduction, ("mean", "sum")),
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
        "optimiser.eps": config.optimiser.eps,
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
        "matcher.caption_dropout": config.matcher.caption_dropout,
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
        "validate.every": config.validate.every,
        "validate.patience": config.validate.patience,
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
    if config.matcher.caption_pieces < 2:
        raise UserError(f"matcher.caption_pieces={config.matcher.caption_pieces} must be 2 or more: [CLS] and what follows it.")
    scan = config.matcher
    if (scan.kind, scan.direction, scan.pooling) == ("scan", "i2t", "lse") and scan.lambda_lse is None and not config.init:
        raise UserError(
            "matcher.direction=i2t needs matcher.lambda_lse: published are 20 on COCO (recipe scan-i2t-coco) and 5 on Flickr30K "
            "(scan-i2t-flickr)."
        )
    if config.objective == "pretrain" and sum(config.pretrain.mix.values()) <= 0:
        raise UserError("pretrain.mix gives every task zero odds; set one above zero.")
    check_offline(config.quintuplet, config.offline, config.negatives.shared, config.objective)


def check_offline(quintuplet: QuintupletConfig, offline: OfflineConfig, shared: bool, objective: str) -> None:
    """What contradicts itself, or lacks its folder. `shared` is negatives.shared."""
    if quintuplet.kind not in ("", *KINDS):
        raise UserError(f"quintuplet.kind '{quintuplet.kind}': {nearest(quintuplet.kind, KINDS)}")
    if not quintuplet.online and quintuplet.kind in ("online", "adaptive"):
        raise UserError(f"quintuplet.online=false does not go with quintuplet.kind={quintuplet.kind}; use offline or quintuplet.")
    if offline.last < offline.first:
        raise UserError(f"offline.last={offline.last} is below offline.first={offline.first}; ranks are drawn from first to last.")
    if offline.replace_random and shared:
        raise UserError("offline.replace_random and negatives.shared exclude each other; set one of them to false.")
    reasons = {
        f"quintuplet.kind={quintuplet.kind}": quintuplet.kind not in ("", "online"),
        "offline.replace_random=true": offline.replace_random,
        f"offline.remine_every={offline.remine_every}": offline.remine_every > 0,
    }
    for setting in (setting for setting, needed in reasons.items() if needed):
        if objective == "pretrain":
            raise UserError(f"{setting} has no meaning in pre-training; remove it or set objective=retrieval.")
    if offline.remine_every and not needs_candidates(quintuplet, offline):
        raise UserError(f"offline.remine_every={offline.remine_every} orders candidates that no loss draws; set it to 0.")


def as_dict(config: RunConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def save_config(config: RunConfig, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
