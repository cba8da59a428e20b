"""What happens before the loop of `train.py`: the model, the output folder, the size of a micro-batch. All checks that can be
made before long work are made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tagsds.config import RunConfig, as_dict, save_config
from tagsds.data.bank import Bank
from tagsds.data.shards import Manifest
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import seed_of
from tagsds.errors import UserError
from tagsds.files import sha256_of
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.card import Card
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config, read_encoder_config
from tagsds.models.matchers import MATCHERS, VSRN, Matcher
from tagsds.models.uniter.settings import BASE_SIZES
from tagsds.ranks import World


def build_model(config: RunConfig, manifest: Manifest, vocab: Vocabulary) -> UniterModel | Matcher:
    """From `init`, or from scratch by the recipe's sizes (seeded, so that all ranks begin alike)."""
    return build_matcher(config, manifest, vocab) if config.objective == "matching" else build_encoder(config, manifest, vocab)


def build_matcher(config: RunConfig, manifest: Manifest, vocab: Vocabulary) -> Matcher:
    """The matcher that `config.matcher` describes, or `init`'s, which must be of the recipe's kind."""
    settings = config.matcher
    make_config, make_model = MATCHERS[settings.kind]
    if config.init:
        folder, _ = find_checkpoint(Path(config.init))
        found = read_config(folder)
        if not isinstance(found, make_config):
            raise UserError(
                f"{folder / 'config.json'} is of model_type '{found.model_type}', the recipe {config.recipe} wants "
                f"'{make_config.model_type}'; give init= a checkpoint of that kind, or set matcher.kind."
            )
        check_data(found, folder, manifest)
        matcher = load_model(folder)
        assert isinstance(matcher, Matcher)
        if isinstance(matcher, VSRN):
            prepare_captioner(matcher, config)
        return matcher
    of_kind: dict[str, dict[str, Any]] = {
        "vsrn": {"graph_layers": settings.graph_layers, "image_norm": settings.image_norm,
                 "column_norm": settings.column_norm, "input_norm": settings.input_norm,
                 "caption_hidden": settings.caption_hidden if settings.caption_weight else 0,
                 "caption_dropout": settings.caption_dropout, "caption_pieces": settings.caption_pieces},
        "scan": {"direction": settings.direction, "pooling": settings.pooling,
                 "lambda_softmax": settings.lambda_softmax, "lambda_lse": settings.lambda_lse},
        "bfan": {"focal": settings.focal, "lambda_softmax": settings.lambda_softmax},
    }  # fmt: skip
    options: dict[str, Any] = {"embed_size": settings.embed_size, **of_kind[settings.kind]}
    torch.manual_seed(seed_of(config.seed, "weights"))
    return make_model(
        make_config(
            vocab_size=vocab.size, region_dim=manifest.feature_dim, word_size=settings.word_size,
            **{name: value for name, value in options.items() if value is not None},
        )
    )  # fmt: skip


def prepare_captioner(matcher: VSRN, config: RunConfig) -> None:
    """The recipe's dropout and longest caption; and a new captioner where the recipe trains one and the checkpoint has none."""
    settings = config.matcher
    matcher.set_captioning(settings.caption_dropout, settings.caption_pieces)
    if matcher.captioner is None and settings.caption_weight and settings.caption_hidden:
        torch.manual_seed(seed_of(config.seed, "captioner"))
        matcher.begin_captioner(settings.caption_hidden, settings.word_size)


def build_encoder(config: RunConfig, manifest: Manifest, vocab: Vocabulary) -> UniterModel:
    """`config.model` then holds the sizes that were taken."""
    sizes = config.model
    if config.init:
        folder, _ = find_checkpoint(Path(config.init))
        found = read_encoder_config(folder)
        for name in BASE_SIZES:
            wanted, here = getattr(sizes, name), getattr(found, name)
            if wanted is not None and wanted != here:
                raise UserError(
                    f"a checkpoint of another width: {folder / 'config.json'} has {name} {here}, the recipe {config.recipe} "
                    f"wants {wanted}; give init= a checkpoint of that size, or take the recipe of this one."
                )
            setattr(sizes, name, here)
        check_data(found, folder, manifest)
        mix = config.pretrain.mix if config.objective == "pretrain" else {}
        if (mix.get("mrckl") or mix.get("mrc")) and found.num_region_classes != manifest.num_classes:
            raise UserError(
                f"{folder / 'config.json'} has num_region_classes {found.num_region_classes} and the shards in {manifest.folder} "
                f"{manifest.num_classes} classes; set pretrain.mix.mrckl=0 and pretrain.mix.mrc=0, or take shards of its detector."
            )
        check_positions(found.max_position_embeddings, manifest, config.data.split)
        encoder = load_model(folder, (sizes.dropout, sizes.attention_dropout))
        assert isinstance(encoder, UniterModel)
        return encoder
    for name, base in BASE_SIZES.items():
        if getattr(sizes, name) is None:
            setattr(sizes, name, base)
    if sizes.hidden_size % sizes.num_attention_heads:  # type: ignore[operator]
        raise UserError(f"model.hidden_size={sizes.hidden_size} is no multiple of {sizes.num_attention_heads} attention heads.")
    torch.manual_seed(seed_of(config.seed, "weights"))
    fresh = UniterConfig(
        vocab_size=vocab.size,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.attention_dropout,
        initializer_range=sizes.initializer_range,
        region_dim=manifest.feature_dim,
        num_region_classes=manifest.num_classes,
        **{name: getattr(sizes, name) for name in BASE_SIZES},
    )
    check_positions(fresh.max_position_embeddings, manifest, config.data.split)
    return UniterModel(fresh)


def check_positions(positions: int, manifest: Manifest, split: str) -> None:
    """UserError if a caption of the split to train on has more word pieces than the model has positions. Captions of other splits
    are compared where they are read (`models.load.check_captions`)."""
    longest = manifest.caption_pieces(split)
    if longest > positions:
        raise UserError(
            f"{manifest.folder / 'manifest.json'}: a caption of split '{split}' has {longest} word pieces and the model "
            f"{positions} positions; pack the corpus again with --max-caption-pieces {split}={positions} --long-captions truncate."
        )


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
    if world.is_main:
        output.mkdir(parents=True, exist_ok=True)
        save_config(config, saved)


def different_settings(saved: Path, config: RunConfig) -> list[str]:
    """Keys on which a saved run and `config` disagree, but for what does not touch the numbers (log.*, validate.*, descriptions,
    places), what `config` leaves open, and the `batch.pairs` that followed from `batch.tokens`. A key that came into the config
    after the run was saved counts as its default."""
    free = ("log.", "validate.", "description", "data_folder", "init", *(("batch.pairs",) if config.batch.tokens else ()))
    default, before, now = (
        flat(value) for value in (as_dict(RunConfig()), OmegaConf.to_container(OmegaConf.load(saved)), as_dict(config))
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
        return int(OmegaConf.load(saved).batch.pairs)
    return max(1, int(config.batch.tokens / tokens_of_pair(bank)))


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
