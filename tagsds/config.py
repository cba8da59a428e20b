"""All settings of a run: dataclasses < recipe YAML < command line. OmegaConf parses and checks; an unknown key is an error."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tagsds.data.augment import AugmentConfig
from tagsds.data.source import DataConfig
from tagsds.errors import UserError, first_line, nearest
from tagsds.evaluators.settings import ValidateConfig
from tagsds.files import is_file
from tagsds.formats.settings_file import read_settings
from tagsds.losses.distillation import DistilConfig
from tagsds.losses.quintuplet import QuintupletConfig
from tagsds.models.matchers import MATCHERS, MatcherSettings
from tagsds.models.uniter.settings import ModelConfig
from tagsds.negatives.offline import OfflineConfig, needs_candidates
from tagsds.negatives.random import NegativesConfig
from tagsds.negatives.writer import SyntheticConfig
from tagsds.objectives import OBJECTIVES
from tagsds.objectives.retrieval.settings import LossConfig
from tagsds.objectives.settings import PretrainConfig
from tagsds.settings import one_of
from tagsds.training_settings import BatchConfig, LogConfig, OptimiserConfig, SafetyConfig

RECIPES = Path(__file__).parent / "recipes"
COMMAND_LINE = "the command line"


def default_matcher() -> MatcherSettings:
    """Of the first kind in the registry."""
    return next(iter(MATCHERS.values())).settings()


@dataclass
class RunConfig:
    """Everything a run depends on besides the shards and the DeepSpeed file."""

    objective: str = "retrieval"
    """by name in `tagsds.objectives.OBJECTIVES`: pretrain, retrieval (the encoder) or matching (a matcher of models/matchers)"""
    recipe: str = ""
    """name of the recipe's file; set on loading"""
    description: str = ""
    """one line on what the recipe is, for logs and the model card"""
    seed: int = 42
    """every draw of the run follows from it"""
    data_folder: str = ""
    """the shards; set from --data"""
    init: str = ""
    """a run folder, a folder inside it or a Hugging Face folder to start from; empty: from scratch"""
    model: ModelConfig = field(default_factory=ModelConfig)
    matcher: MatcherSettings = field(default_factory=default_matcher)
    """the dataclass of the kind that `matcher.kind` names"""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    quintuplet: QuintupletConfig = field(default_factory=QuintupletConfig)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    log: LogConfig = field(default_factory=LogConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(recipe: str) -> Path:
    """The file of a recipe: a name in tagsds/recipes, or a YAML file."""
    path = Path(recipe) if recipe.endswith(".yaml") else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        raise UserError(f"no recipe '{recipe}': {nearest(recipe, recipe_names())}")
    return path


def family(recipe: str) -> list[str]:
    """Names of the recipes that a recipe consists of: the bases before those based on them."""
    return [Path(where).stem for _, where in _with_parents(recipe_path(recipe))]


def load_config(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """The resolved configuration of a recipe (a name in tagsds/recipes or a YAML file) and key=value overrides."""
    path = recipe_path(recipe)
    try:
        config = _merged(path, overrides or [])
    except OmegaConfBaseException as error:  # of an interpolation, wherever its value is looked at
        raise UserError(f"{path}: {error.full_key}: {first_line(error)}.") from error
    check(config)
    return config


def _merged(path: Path, overrides: list[str]) -> RunConfig:
    """The recipe's layers and the command line over the defaults."""
    schema = OmegaConf.structured(RunConfig)
    layers = [*_with_parents(path), (OmegaConf.create({"recipe": path.stem}), str(path))]
    for text in overrides:
        if "=" not in text:
            raise UserError(f"'{text}' on the command line is not of the form key=value.")
        try:
            layers.append((OmegaConf.from_dotlist([text]), COMMAND_LINE))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"'{text}' on the command line cannot be read: {' '.join(str(error).split()).rstrip('.')}.") from error
    kinds = _matcher_kinds(layers)
    schema.matcher = MATCHERS[kinds[-1]].settings
    known = schema.copy()
    for (layer, where), kind in zip(layers, kinds, strict=True):
        if where != COMMAND_LINE:
            _drop_other_kinds(known, layer, kind)
        _check_keys(known, layer, where)
        try:
            schema = OmegaConf.merge(schema, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"{where}: {error.full_key}: {first_line(error)}.") from error
    config = OmegaConf.to_object(schema)
    assert isinstance(config, RunConfig)
    return config


def _with_parents(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[DictConfig, str]]:
    """A recipe may name another as `base:`; the base's keys come first."""
    if not is_file(path):
        raise UserError(f"{path}, a recipe's base, does not exist; {nearest(path.stem, recipe_names())}")
    if path in seen:
        raise UserError(f"{path} names itself as base, by way of {seen[-1]}; remove one of the two lines.")
    layer = read_settings(path)
    base = layer.pop("base", None)
    return [*(_with_parents(path.parent / f"{base}.yaml", (*seen, path)) if base else []), (layer, str(path))]


def _check_keys(schema: Any, layer: Any, where: str, prefix: str = "") -> None:
    """UserError for a key that the schema lacks. A group without keys of its own (loss.more) takes any; its owner checks them."""
    if not schema:
        return
    for key in layer:
        if key not in schema:
            raise UserError(f"{where}: unknown key '{prefix}{key}': {nearest(str(key), map(str, schema))}")
        if isinstance(schema[key], DictConfig):
            if not isinstance(layer[key], DictConfig):
                known = ", ".join(map(str, schema[key]))
                raise UserError(f"{where}: '{prefix}{key}' is a group of settings, not a value; set one of them: {known}.")
            _check_keys(schema[key], layer[key], where, f"{prefix}{key}.")


def _matcher_kinds(layers: list[tuple[Any, str]]) -> list[str]:
    """`matcher.kind` as it stands after each layer. The last one decides which settings the group `matcher` has."""
    kinds = [default_matcher().kind]
    for layer, where in layers:
        group = layer.get("matcher")
        kinds.append(str(group["kind"]) if isinstance(group, DictConfig) and "kind" in group else kinds[-1])
        if kinds[-1] not in MATCHERS:
            raise UserError(f"{where}: matcher.kind '{kinds[-1]}': {nearest(kinds[-1], MATCHERS)}")
    return kinds[1:]


def _drop_other_kinds(schema: Any, layer: Any, kind: str) -> None:
    """Leave out of a file what belongs to another kind of matcher than the run's, whose settings `schema.matcher` holds.

    A base recipe may be of another kind (`kind`: as of this file): its kind's own settings go with it. And a run once saved the
    settings of all kinds in one group: those of other kinds are left out where they are defaults.
    """
    group = layer.get("matcher")
    if not isinstance(group, DictConfig):
        return
    for name, other in MATCHERS.items():
        for key, default in vars(other.settings()).items():
            if key in group and key not in schema.matcher and (name == kind or group[key] == default):
                group.pop(key)


def check(config: RunConfig) -> None:
    """What can be known to be wrong before anything is loaded: each group checks its own values, and here stand the rules between
    groups."""
    one_of(config, "", objective=tuple(OBJECTIVES))
    for name, group in vars(config).items():
        if is_dataclass(group):
            group.check(name)  # type: ignore[union-attr]
    if not config.init:
        config.matcher.check_fresh("matcher")
    OBJECTIVES[config.objective].check(config)
    if config.batch.activation_checkpointing and OBJECTIVES[config.objective].trains != "encoder":
        raise UserError("batch.activation_checkpointing is of the encoder's layers, a matcher has none; set it to false.")
    check_offline(config.quintuplet, config.offline, config.negatives.shared, config.distil.offline)


def check_offline(quintuplet: QuintupletConfig, offline: OfflineConfig, shared: bool, taught: int) -> None:
    """What contradicts itself. `shared` is negatives.shared, `taught` distil.offline."""
    if offline.replace_random and shared:
        raise UserError("offline.replace_random and negatives.shared exclude each other; set one of them to false.")
    if offline.remine_every and not needs_candidates(quintuplet, offline, taught):
        raise UserError(f"offline.remine_every={offline.remine_every} orders candidates that no loss draws; set it to 0.")


def as_dict(config: RunConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def save_config(config: RunConfig, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
