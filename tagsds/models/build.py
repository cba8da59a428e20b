"""The model of a run: from the checkpoint of `init`, or from scratch by the recipe's sizes. Every check that needs no weights is
made before they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tagsds.data.vocabulary import Vocabulary, corpus_tokenizer
from tagsds.draw import seed_of
from tagsds.errors import UserError
from tagsds.formats.manifest import Manifest
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.load import check_data, find_checkpoint, load_model, read_config, read_encoder_config
from tagsds.models.matchers import MATCHERS, Matcher, MatcherSettings
from tagsds.models.uniter.settings import BASE_SIZES, ModelConfig
from tagsds.models.word_vectors import put_word_vectors


@dataclass(frozen=True)
class Start:
    """What a model of either sort begins with.

    init            a run, or a Hugging Face folder; empty: from scratch, seeded, so that all ranks begin alike
    split           the split to train on
    recipe, seed    of the run
    """

    manifest: Manifest
    vocab: Vocabulary
    init: str
    recipe: str
    seed: int
    split: str


def build_matcher(settings: MatcherSettings, start: Start) -> Matcher:
    """The matcher that group `matcher` of a recipe describes, or `init`'s, which must be of the recipe's kind."""
    kind = MATCHERS[settings.kind]
    if start.init:
        folder, _ = find_checkpoint(Path(start.init))
        found = read_config(folder)
        if found.model_type != kind.config.model_type:
            raise UserError(
                f"{folder / 'config.json'} is of model_type '{found.model_type}', the recipe {start.recipe} wants "
                f"'{kind.config.model_type}'; give init= a checkpoint of that kind, or set matcher.kind."
            )
        check_data(found, folder, start.manifest)
        matcher: Matcher = load_model(folder)
        matcher.take_training_settings(settings, start.seed)
        return matcher
    torch.manual_seed(seed_of(start.seed, "weights"))
    sizes = {name: value for name, value in settings.sizes().items() if value is not None}
    return kind.model(kind.config(vocab_size=start.vocab.size, region_dim=start.manifest.feature_dim, **sizes))


def build_encoder(sizes: ModelConfig, start: Start, predicts_classes: bool) -> UniterModel:
    """The pair encoder; `sizes` then holds the sizes that were taken. `predicts_classes`: whether the run trains on the regions'
    soft labels."""
    manifest = start.manifest
    if start.init:
        if sizes.word_vectors:
            raise UserError("model.word_vectors begin a fresh model, and init names a checkpoint, which has its own; remove one.")
        folder, _ = find_checkpoint(Path(start.init))
        found = read_encoder_config(folder)
        for name in BASE_SIZES:
            wanted, here = getattr(sizes, name), getattr(found, name)
            if wanted is not None and wanted != here:
                raise UserError(
                    f"a checkpoint of another width: {folder / 'config.json'} has {name} {here}, the recipe {start.recipe} "
                    f"wants {wanted}; give init= a checkpoint of that size, or take the recipe of this one."
                )
            setattr(sizes, name, here)
        check_data(found, folder, manifest)
        if predicts_classes and found.num_region_classes != manifest.num_classes:
            raise UserError(
                f"{folder / 'config.json'} has num_region_classes {found.num_region_classes} and the shards in {manifest.folder} "
                f"{manifest.num_classes} classes; set pretrain.mix.mrckl=0 and pretrain.mix.mrc=0, or take shards of its detector."
            )
        check_positions(found.max_position_embeddings, manifest, start.split)
        loaded: UniterModel = load_model(folder, (sizes.dropout, sizes.attention_dropout))
        return loaded
    for name, base in BASE_SIZES.items():
        if getattr(sizes, name) is None:
            setattr(sizes, name, base)
    if sizes.hidden_size % sizes.num_attention_heads:  # type: ignore[operator]
        raise UserError(f"model.hidden_size={sizes.hidden_size} is no multiple of {sizes.num_attention_heads} attention heads.")
    torch.manual_seed(seed_of(start.seed, "weights"))
    fresh = UniterConfig(
        vocab_size=start.vocab.size,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.attention_dropout,
        initializer_range=sizes.initializer_range,
        region_dim=manifest.feature_dim,
        num_region_classes=manifest.num_classes,
        **{name: getattr(sizes, name) for name in BASE_SIZES},
    )
    check_positions(fresh.max_position_embeddings, manifest, start.split)
    encoder = UniterModel(fresh)
    if sizes.word_vectors and encoder.device.type != "meta":  # an estimate needs no numbers
        pieces = corpus_tokenizer(manifest).get_vocab()
        put_word_vectors(encoder.text_embedding.word.weight, Path(sizes.word_vectors), pieces, sizes.initializer_range)
    return encoder


def check_positions(positions: int, manifest: Manifest, split: str) -> None:
    """UserError if a caption of the split to train on has more word pieces than the model has positions. Captions of other splits
    are compared where they are read (`models.load.check_captions`)."""
    longest = manifest.caption_pieces(split)
    if longest > positions:
        raise UserError(
            f"{manifest.folder / 'manifest.json'}: a caption of split '{split}' has {longest} word pieces and the model "
            f"{positions} positions; pack the corpus again with --max-caption-pieces {split}={positions} --long-captions truncate."
        )
