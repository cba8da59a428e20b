"""What happens before the loop of `train.py`: the model, the output folder, the size of a micro-batch. All checks that can be
made before long work are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tagsds.config import RunConfig, as_dict, save_config
from tagsds.data.bank import Bank
from tagsds.data.vocabulary import Vocabulary
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.formats.manifest import Manifest
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.build import Start, build_encoder, build_matcher
from tagsds.models.card import Card
from tagsds.models.matchers import MATCHERS, Matcher
from tagsds.ranks import World


def build_model(config: RunConfig, manifest: Manifest, vocab: Vocabulary) -> UniterModel | Matcher:
    """From `init`, or from scratch by the recipe's sizes (seeded, so that all ranks begin alike)."""
    start = Start(manifest, vocab, config.init, config.recipe, config.seed, config.data.split)
    if config.objective == "matching":
        return build_matcher(config.matcher, start)
    mix = config.pretrain.mix if config.objective == "pretrain" else {}
    return build_encoder(config.model, start, predicts_classes=bool(mix.get("mrckl") or mix.get("mrc")))


def prepare_output(output: Path, config: RunConfig, resume: bool, world: World) -> None:
    """Nothing that is there is overwritten: an output folder with a run in it is resumed, with the same settings, or refused."""
    saved = output / "config.yaml"
    if saved.is_file():
        if not resume:
            raise UserError(f"{output} holds a run already; add --resume to go on with it, or name another --output.")
        if changed := different_settings(saved, config):
            raise UserError(
                f"--resume with other settings than {saved} has: {', '.join(changed)}; repeat the settings of its first start, "
                "or name another --output."
            )
    world.wait()  # all ranks have looked before the first writes
    if world.first:
        output.mkdir(parents=True, exist_ok=True)
        save_config(config, saved)


def different_settings(saved: Path, config: RunConfig) -> list[str]:
    """Keys on which a saved run and `config` disagree, but for what does not touch the numbers (log.*, descriptions, places),
    what `config` leaves open, and the `batch.pairs` that followed from `batch.tokens`. A key that came into the config after the
    run was saved counts as its default. Settings of another kind of matcher are not compared: the kind itself is."""
    free = ("log.", "description", "data_folder", "init", *(("batch.pairs",) if config.batch.tokens else ()))
    default, before, now = (
        _flat(value)
        for value in (
            as_dict(RunConfig(matcher=type(config.matcher)())), OmegaConf.to_container(OmegaConf.load(saved)), as_dict(config)
        )
    )
    before = default | before
    keys = [key for key in now if now[key] is not None and not key.startswith(free)]
    return sorted(key for key in keys if before.get(key) != now[key])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{prefix}{name}.").items()}


def random_negatives(config: RunConfig) -> int:
    """How many other images, and captions of other images, a true pair is held against at random."""
    if config.objective != "retrieval" or config.negatives.shared or config.offline.replace_random:
        return 0
    return config.negatives.count


def batch_size(config: RunConfig, bank: Bank, resumed: Path | None = None) -> int:
    """True pairs of a micro-batch; from a budget of tokens where the recipe gives one. Then it follows from the mean lengths of
    the first window alone: a run that is `resumed` (its output folder) keeps what its start computed, since the sampler's order
    depends on it, and the current window has other means."""
    if not config.batch.tokens:
        return config.batch.pairs
    saved = resumed / "config.yaml" if resumed else None
    if saved and saved.is_file():
        return int(OmegaConf.load(saved).batch.pairs)
    tokens_per_pair = bank.tokens.lengths.float().mean() + bank.regions.lengths.float().mean()
    return max(1, int(config.batch.tokens / float(tokens_per_pair)))


def card_of(config: RunConfig, manifest: Manifest, true_pairs: int, steps: int) -> Card:
    """Facts of the model card of a run's export after so many steps of `true_pairs` matching pairs each."""
    settings = config.optimiser
    recipe = {
        "recipe": config.recipe, "description": config.description, "objective": config.objective,
        "steps": f"{steps} of {settings.steps}", "matching pairs a step": true_pairs,
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
    kind = UniterConfig.model_type if config.objective != "matching" else MATCHERS[config.matcher.kind].config.model_type
    return Card(kind=kind, recipe={key: value for key, value in recipe.items() if value not in ("", None)}, data=data)
