"""A checkpoint: where it lies, whether it is whole, and whether it fits the shards; before any long work starts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.utils import logging

from tagsds.data.bank import Bank
from tagsds.data.vocabulary import corpus_tokenizer, load_tokenizer
from tagsds.errors import UserError, first_line
from tagsds.files import check_checksums
from tagsds.formats.manifest import Manifest
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.matchers.config import MatcherConfig
from tagsds.models.weights_file import WEIGHTS, check_config, check_weights

COPY_AGAIN = "copy the folder again, or export the run again"


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """`path` is a training run or a Hugging Face folder -> (the Hugging Face folder, the folder results belong in)."""
    if (path / "config.json").is_file():
        return path, path.resolve().parent
    if (path / "export" / "config.json").is_file():
        return path / "export", path
    if not path.is_dir():
        raise UserError(f"{path} does not exist; give a training run's folder or one with config.json.")
    unfinished = " (an unfinished run: let it end with --resume)" if (path / "checkpoints").is_dir() else ""
    raise UserError(
        f"{path} holds neither config.json nor export/config.json{unfinished}; "
        "give a finished training run's folder, or one written by save_pretrained."
    )


def read_config(folder: Path) -> Any:
    """config.json alone, so that checks need no weights: a UniterConfig or a MatcherConfig. All files of a folder with
    checksums.json are held against it; the large ones, the weights, by their size (`load_model` reads them whole)."""
    check_checksums(folder, COPY_AGAIN, large=False)
    check_config(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a damaged config: whatever the key that is wrong leads to
        raise UserError(f"{folder / 'config.json'} cannot be read as a model config; export the run again.") from error
    if not isinstance(config, UniterConfig | MatcherConfig):
        kinds: list[type[PretrainedConfig]] = [UniterConfig, *MatcherConfig.__subclasses__()]
        raise UserError(
            f"{folder / 'config.json'} has model_type '{config.model_type}', not one of "
            f"{', '.join(kind.model_type for kind in kinds)}; "
            "give a checkpoint of this program, or convert it first."
        )
    defaults = vars(type(config)())
    for name, found in vars(config).items():
        if type(defaults.get(name)) in (int, float, str, bool) and not is_like(found, defaults[name]):
            raise UserError(f"{folder / 'config.json'} has {name} {str(found)[:60]!r}, which cannot be; {COPY_AGAIN}.")
    if isinstance(config, UniterConfig) and (not config.num_attention_heads or config.hidden_size % config.num_attention_heads):
        heads = f"hidden_size {config.hidden_size} for {config.num_attention_heads} attention heads"
        raise UserError(f"{folder / 'config.json'} has {heads}, which cannot be; {COPY_AGAIN}.")
    return config


def is_like(value: Any, default: Any) -> bool:
    """Whether a setting has the type of its default, and is not negative where that is not; a float may be a whole number."""
    if type(default) in (int, float):
        whole = type(value) is int or (type(default) is float and type(value) is float)
        return whole and abs(value) < float("inf") and (value >= 0 or default < 0)
    return type(value) is type(default)


def read_encoder_config(folder: Path) -> UniterConfig:
    """The same where only the pair encoder will do: a matcher is an error."""
    config = read_config(folder)
    if not isinstance(config, UniterConfig):
        raise UserError(
            f"{folder / 'config.json'} has model_type '{config.model_type}', a matcher, where '{UniterConfig.model_type}' "
            "is needed; give a checkpoint of the pair encoder."
        )
    return config


def load_model(folder: Path, dropout: tuple[float, float] | None = None) -> Any:
    """In fp32, every weight from the file: a weight that is missing is an error, never a fresh initialisation.

    The class is the one that AutoModel knows for the config: UniterModel, or a Matcher. `dropout` (of hidden states, of
    attention weights) replaces the encoder config's. Returned in evaluation mode. The weights are held against checksums.json,
    where the folder has one.
    """
    logging.disable_progress_bar()
    config = read_config(folder)
    check_checksums(folder, COPY_AGAIN)
    if (folder / WEIGHTS).is_file():
        check_weights(folder, config)
    if dropout is not None:
        config.hidden_dropout_prob, config.attention_probs_dropout_prob = dropout
    try:
        loaded: Any = AutoModel.from_pretrained(
            str(folder), config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # transformers and safetensors raise half a dozen kinds for a broken file
        raise UserError(f"the weights in {folder} cannot be loaded ({first_line(error)}); export or copy them again.") from error
    model, info = loaded
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if absent:
        raise UserError(
            f"{folder / 'model.safetensors'} lacks {len(absent)} weights of its config (first: {absent[0]}); "
            "export or convert the checkpoint again."
        )
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # off the mapped file, whose tensors may lie unaligned
        if not tensor.isfinite().all():
            raise UserError(f"{folder / WEIGHTS} holds NaN or infinity; {COPY_AGAIN}, or train with a lower optimiser.lr.")
    return model.eval()


def check_data(config: UniterConfig | MatcherConfig, folder: Path, manifest: Manifest) -> None:
    """UserError where the shards' feature width or tokenizer is not the checkpoint's."""
    shards = manifest.folder / "manifest.json"
    if config.region_dim != manifest.feature_dim:
        raise UserError(
            f"a checkpoint of another width: {folder / 'config.json'} has region_dim {config.region_dim}, {shards} has "
            f"feature_dim {manifest.feature_dim}; evaluate it on shards of its own features, or train on these."
        )
    if (folder / "tokenizer.json").is_file():
        ours, theirs = load_tokenizer(folder), corpus_tokenizer(manifest)
        if ours.get_vocab() != theirs.get_vocab():
            strange = sorted(set(theirs.get_vocab().items()) ^ set(ours.get_vocab().items()))
            raise UserError(
                f"a checkpoint of another vocabulary: {folder / 'tokenizer.json'} has {len(ours)} pieces, "
                f"{manifest.folder / 'tokenizer'} has {len(theirs)} (they differ at '{strange[0][0]}'); "
                f"pack the corpus again with --tokenizer {folder}."
            )
    elif config.vocab_size != manifest.vocab_size:
        raise UserError(
            f"a checkpoint of another vocabulary: {folder / 'config.json'} has vocab_size {config.vocab_size}, "
            f"{shards} has {manifest.vocab_size}; pack the corpus again with the checkpoint's tokenizer."
        )
    else:
        message = f"{folder} holds no tokenizer.json; the shards' tokenizer is taken for the checkpoint's."
        warnings.warn(message, stacklevel=2)


def positions_of_model(config: Any) -> int | None:
    """Word pieces that a caption may have; None where the model reads captions of any length (a matcher)."""
    return getattr(config, "max_position_embeddings", None)


def check_captions(positions: int | None, bank: Bank, captions: torch.Tensor) -> None:
    """UserError for the first of the captions (int64 [C]) that has more word pieces than the model has positions.

    `positions` None: any length will do.
    """
    if positions is None:
        return
    lengths = bank.tokens.lengths[captions]
    if captions.numel() and int(lengths.max()) > positions:
        caption = int(captions[int(lengths.argmax())])
        raise UserError(
            f"a caption of image {bank.keys[int(bank.image_of_caption[caption])]} has {int(lengths.max())} word pieces "
            f"and the checkpoint's max_position_embeddings is {positions}; pack the corpus again with "
            f"--max-caption-pieces SPLIT={positions} --long-captions truncate, where SPLIT is the split of that image."
        )


@torch.no_grad()
def ensure_rank_head(model: UniterModel) -> str:
    """'rank' where some stage trained the ranking head; it is left as it is (docs/faults.md).

    A pre-training checkpoint has only `itm`: the ranking head becomes the difference of its two rows, whose sigmoid is
    exactly the probability of a match. ('itm'; row 1 alone, with which fine-tuning begins, ranks differently.)
    """
    trained = model.config.trained_heads
    if "rank" in trained:
        return "rank"
    if "itm" not in trained:
        raise UserError(
            f"config.json of the checkpoint names no trained head that scores a pair (trained_heads: {trained}); "
            "train it with a retrieval recipe, or pre-train it with itm."
        )
    warnings.warn("the rank head is not trained; pairs are scored by the itm head's log odds of a match.", stacklevel=2)
    model.rank.weight.copy_(model.itm.weight[1:2] - model.itm.weight[0:1])
    model.rank.bias.copy_(model.itm.bias[1:2] - model.itm.bias[0:1])
    return "itm"
