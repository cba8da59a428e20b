"""What happens before the loop of `train.py`: the model, the output folder, the size of a micro-batch. All checks that can be
made before long work are made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tagsds.config import RunConfig, as_dict, save_config
from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.formats.manifest import Manifest
from tagsds.formats.settings_file import read_settings
from tagsds.models import UniterModel
from tagsds.models.build import Start, build_encoder, build_matcher
from tagsds.models.card import Card
from tagsds.models.matchers import Matcher
from tagsds.objectives import OBJECTIVES
from tagsds.ranks import World

RESTORE = "restore it, or name another --output"
BUILDERS: dict[str, Callable[[RunConfig, Start], UniterModel | Matcher]] = {  # by what an objective `trains`
    "encoder": lambda config, start: build_encoder(config.model, start, OBJECTIVES[config.objective].needs_classes(config)),
    "matcher": lambda config, start: build_matcher(config.matcher, start),
}


FREE = ("batch.pairs", "batch.accumulation", "batch.activation_checkpointing", "data.cache", "data.bad_shards")
"""settings besides the obvious ones with which a run may be resumed though they were others: the first two are held against the
checkpoint's, the others change no number"""


def build_model(config: RunConfig, manifest: Manifest, vocab: Vocabulary) -> UniterModel | Matcher:
    """From `init`, or from scratch by the recipe's sizes (seeded, so that all ranks begin alike)."""
    start = Start(manifest, vocab, config.init, config.recipe, config.seed, config.data.split)
    model = BUILDERS[OBJECTIVES[config.objective].trains](config, start)
    if config.batch.activation_checkpointing:
        model.recomputes_layers = True
    return model


def prepare_output(output: Path, config: RunConfig, resume: bool, world: World) -> None:
    """Nothing that is there is overwritten: an output folder with a run in it is resumed, with the same settings, or refused."""
    check_output(output, config, resume)
    world.wait()  # all ranks have looked before the first writes
    if world.is_main:
        output.mkdir(parents=True, exist_ok=True)
        save_config(config, output / "config.yaml")


def check_output(output: Path, config: RunConfig, resume: bool) -> None:
    """UserError where the output folder holds a run and this is none that goes on with it."""
    saved = output / "config.yaml"
    if saved.is_file():
        if not resume:
            raise UserError(f"{output} holds a run already; add --resume to go on with it, or name another --output.")
        if changed := different_settings(saved, config):
            raise UserError(
                f"--resume with other settings than {saved} has: {', '.join(changed)}; repeat the settings of its first start, "
                "or name another --output."
            )


def validates(config: RunConfig) -> bool:
    """Whether the run measures recall on its way. UserError where it should and trains nothing that ranks."""
    if not 0 < config.validate.every <= config.optimiser.steps:
        return False
    if not OBJECTIVES[config.objective].ranks:
        raise UserError(f"validate.every={config.validate.every}: objective {config.objective} trains no ranking; set it to 0.")
    return True


def different_settings(saved: Path, config: RunConfig) -> list[str]:
    """Keys on which a saved run and `config` disagree, but for what does not touch the numbers (log.*, validate.*, descriptions,
    places), what `config` leaves open, and how a step's true pairs are dealt out to micro-batches (their number is held against the
    checkpoint's by `tagsds.engine.resume`). A key that came into the config
    after the run was saved counts as its default. Settings of another kind of matcher are not compared: the kind itself is."""
    free = ("log.", "validate.", "safety.", "description", "data_folder", "init", *FREE)
    default, before, now = (
        flat(value)
        for value in (
            as_dict(RunConfig(matcher=type(config.matcher)())), saved_settings(saved), as_dict(config)
        )
    )
    before = default | before
    keys = [key for key in now if now[key] is not None and not key.startswith(free)]
    return sorted(key for key in keys if before.get(key) != now[key])


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {key with dots: value}."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{prefix}{name}.").items()}


def batch_size(config: RunConfig, bank: Bank, resumed: Path | None = None) -> int:
    """True pairs of a micro-batch; from a budget of tokens where the recipe gives one. Then it follows from the mean lengths of
    the first window alone: a run that is `resumed` (its output folder) keeps what its start computed, since the sampler's order
    depends on it, and the current window has other means."""
    if not config.batch.tokens:
        return config.batch.pairs
    saved = resumed / "config.yaml" if resumed else None
    if saved and saved.is_file():
        return pairs_of(saved)
    return max(1, int(config.batch.tokens / tokens_of_pair(bank)))


def pairs_of(saved: Path) -> int:
    """`batch.pairs` of a run's config.yaml."""
    group = saved_settings(saved).get("batch")
    pairs = group.get("pairs") if isinstance(group, dict) else None
    if not isinstance(pairs, int) or pairs < 1:
        raise UserError(f"{saved} has no batch.pairs of at least 1; {RESTORE}.")
    return pairs


def saved_settings(saved: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values."""
    plain = OmegaConf.to_container(read_settings(saved, RESTORE))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def tokens_of_pair(bank: Bank) -> float:
    """Word pieces of a caption, [CLS] and [SEP] among them, and regions of an image: their means, added."""
    return float(bank.tokens.lengths.float().mean() + bank.regions.lengths.float().mean())


def card_of(config: RunConfig, manifest: Manifest, kind: str, true_pairs: int, steps: int, best: str = "") -> Card:
    """Facts of the model card of a run's export after so many steps of `true_pairs` matching pairs each. `kind`: the model_type of
    its config. `best`: the figure of a validation for which the export was kept."""
    settings = config.optimiser
    recipe = {
        "recipe": config.recipe, "description": config.description, "objective": config.objective,
        "steps": f"{steps} of {settings.steps}", "kept as the best of its validations": best, "matching pairs a step": true_pairs,
        "optimiser": f"{settings.name}, learning rate {settings.lr}, weight decay {settings.weight_decay}",
        "started from": config.init or "fresh weights", "seed": config.seed,
    }  # fmt: skip
    split = manifest.splits[config.data.split]
    data = {
        "corpus": manifest.folder.resolve().name,
        "packed from": manifest.made_by.get("source", "unknown"),
        "split": f"{config.data.split}: {split['images']} images, {split['captions']} captions",
        "region features": f"{manifest.feature_dim} wide",
        "manifest (sha256)": sha256_of(manifest.folder / "manifest.json"),
    }
    return Card(kind=kind, recipe={key: value for key, value in recipe.items() if value not in ("", None)}, data=data)
