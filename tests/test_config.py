"""The layers of a configuration, its errors, and the published numbers."""

import dataclasses

import pytest
import yaml

from tagsds.config import RECIPES, RunConfig, load_config, recipe_names, save_config
from tagsds.errors import UserError
from tagsds.models.matchers import MATCHERS
from tagsds.prepare import different_settings


def written(folder, name, text):
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def refusal(*arguments) -> str:
    with pytest.raises(UserError) as error:
        load_config(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- layers --------------------------------------------------------------------------------------------------------


def test_defaults_below_recipe_below_command_line(tmp_path):
    path = written(tmp_path, "mine", "optimiser: {lr: 3.0e-4, steps: 70}\nloss: {syn: 0.5}\n")
    config = load_config(path, ["optimiser.lr=1e-3", "batch.pairs=7", "optimiser.lr=2e-3"])
    assert config.optimiser.lr == 2e-3  # command line, the last one
    assert config.optimiser.steps == 70  # recipe
    assert config.optimiser.warmup_steps == RunConfig().optimiser.warmup_steps == 500  # default
    assert (config.batch.pairs, config.loss.syn, config.loss.mlm) == (7, 0.5, 0.0)
    assert config.recipe == "mine"


def test_no_overrides_and_an_empty_recipe_are_the_defaults(tmp_path):
    config = load_config(written(tmp_path, "empty", ""))
    assert config == dataclasses.replace(RunConfig(), recipe="empty")


def test_a_recipe_may_name_a_base(tmp_path):
    written(tmp_path, "ground", "optimiser: {lr: 1.0e-4, steps: 10}\nseed: 1\n")
    written(tmp_path, "middle", "base: ground\noptimiser: {steps: 20}\nseed: 2\n")
    top = written(tmp_path, "top", "base: middle\nseed: 3\n")
    config = load_config(top)
    assert (config.optimiser.lr, config.optimiser.steps, config.seed) == (1e-4, 20, 3)
    assert config.recipe == "top"


def test_types_are_those_of_the_dataclasses(tmp_path):
    config = load_config(written(tmp_path, "a", ""), ["negatives.shared=true", "optimiser.betas=[0.8,0.9]", "seed=7"])
    assert config.negatives.shared is True and config.optimiser.betas == [0.8, 0.9] and config.seed == 7
    assert isinstance(config.optimiser.lr, float) and isinstance(config.batch.pairs, int)


def test_the_resolved_config_reads_back_as_itself(tmp_path):
    config = load_config("tagsdc-large-flickr", ["seed=5", "data.max_gib=2"])
    save_config(config, tmp_path / "config.yaml")
    again = load_config(str(tmp_path / "config.yaml"))
    assert dataclasses.replace(again, recipe=config.recipe) == config


def test_odds_of_the_mix_are_merged(tmp_path):
    config = load_config(written(tmp_path, "a", "objective: pretrain\npretrain: {mix: {mrckl: 0}}\n"))
    assert config.pretrain.mix == {"itm": 2, "mlm": 2, "mrfr": 1, "mrckl": 0, "mrc": 0}


# --- refusals ------------------------------------------------------------------------------------------------------


def test_unknown_recipe_names_the_nearest():
    text = refusal("tags-base-coc")
    assert "'tags-base-coc'" in text and "did you mean 'tags-base-coco'?" in text


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("optimiser.learning_rates=1", "optimiser.learning_rates", "known: "),
        ("optimiser.step=1", "optimiser.step", "'steps'"),
        ("optimizer.lr=1", "optimizer", "'optimiser'"),
        ("sed=1", "sed", "'seed'"),
        ("loss.synn=1", "loss.synn", "'syn'"),
        ("pretrain.mix.mrk=1", "pretrain.mix.mrk", "mrckl"),
    ],
)
def test_unknown_key_on_the_command_line(tmp_path, override, key, nearest):
    text = refusal(written(tmp_path, "a", ""), [override])
    assert "the command line" in text and f"'{key}'" in text and nearest in text


def test_unknown_key_in_a_recipe_or_its_base_names_the_file(tmp_path):
    base = written(tmp_path, "ground", "negatives: {keeps: 3}\n")
    for path in (base, written(tmp_path, "top", "base: ground\n")):
        text = refusal(path)
        assert base in text and "'negatives.keeps'" in text and "'keep'" in text


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optimiser.steps=many", "optimiser.steps"),
        ("optimiser.lr=fast", "optimiser.lr"),
        ("batch.pairs=2.5", "batch.pairs"),
        ("negatives.shared=perhaps", "negatives.shared"),
        ("optimiser.betas=0.9", "optimiser.betas"),
        ("optimiser=3", "optimiser"),
        ("optimiser.lr=", "optimiser.lr"),
    ],
)
def test_wrong_type(tmp_path, override, key):
    text = refusal(written(tmp_path, "a", ""), [override])
    assert key in text and "the command line" in text


@pytest.mark.parametrize("override", ["seed", "--lr", "resume"])
def test_override_without_an_equals_sign(tmp_path, override):
    text = refusal(written(tmp_path, "a", ""), [override])
    assert f"'{override}'" in text and "key=value" in text


@pytest.mark.parametrize(
    "override",
    [
        "objective=retreival", "negatives.dtype=fp8", "optimiser.name=sgd", "batch.pairs=0", "batch.accumulation=0",
        "optimiser.steps=0", "negatives.count=0", "negatives.keep=-1", "synthetic.maskings=0", "synthetic.refills=0",
        "synthetic.tau=0",
    ],
)  # fmt: skip
def test_values_that_cannot_be_right(tmp_path, override):
    key, value = override.split("=")
    text = refusal(written(tmp_path, "a", ""), [override])
    assert key in text and value in text


def test_a_pretraining_without_tasks(tmp_path):
    odds = [f"pretrain.mix.{task}=0" for task in ("itm", "mlm", "mrfr", "mrckl", "mrc")]
    assert "pretrain.mix" in refusal(written(tmp_path, "a", "objective: pretrain\n"), odds)
    load_config(written(tmp_path, "b", "objective: retrieval\n"), odds)  # no concern of fine-tuning


def test_a_file_that_is_no_recipe(tmp_path):
    assert "a.yaml" in refusal(written(tmp_path, "a", "- 1\n- 2\n"))
    assert "b.yaml" in refusal(written(tmp_path, "b", "optimiser: {lr: [\n"))


def test_a_base_that_is_missing(tmp_path):
    text = refusal(written(tmp_path, "a", "base: nowhere\n"))
    assert "nowhere" in text


# --- the recipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name):
    config = load_config(name)
    assert config.recipe == name
    assert config.description
    assert 0 <= config.optimiser.warmup_steps < config.optimiser.steps
    raw = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert set(raw) <= {"base", *(field.name for field in dataclasses.fields(RunConfig))}


# arXiv 2111.03349, the released settings: lr, tau, lambda_syn, lambda_mlm, lambda_disc = lambda_corr, K, acc, steps, warm-up
PUBLISHED = {
    "tags-base-coco": (5e-5, 1.5, 5e-5, 0.01, 0.0, 31, 32, 5000, 500),
    "tags-base-flickr": (5e-5, 2.0, 5e-4, 0.05, 0.0, 31, 16, 5000, 500),
    "tags-large-coco": (4e-5, 1.5, 1e-3, 0.05, 0.0, 23, 32, 5000, 500),
    "tags-large-flickr": (5e-5, 2.0, 1e-3, 0.05, 0.0, 23, 32, 5000, 500),
    "tagsdc-base-coco": (1e-5, 1.5, 1e-4, 0.05, 5e-4, 31, 32, 1500, 150),
    "tagsdc-base-flickr": (1e-5, 1.5, 5e-4, 0.1, 5e-4, 31, 32, 1500, 150),
    "tagsdc-large-coco": (1e-5, 1.5, 1e-4, 0.05, 5e-4, 31, 32, 1500, 150),
    "tagsdc-large-flickr": (1e-5, 1.5, 5e-4, 0.05, 5e-4, 23, 32, 5000, 500),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fine_tuning(name):
    config = load_config(name)
    lr, tau, syn, mlm, word, keep, acc, steps, warmup = PUBLISHED[name]
    optimiser, loss = config.optimiser, config.loss
    assert (optimiser.lr, optimiser.steps, optimiser.warmup_steps) == (lr, steps, warmup)
    assert (loss.syn, loss.mlm, loss.disc, loss.corr) == (syn, mlm, word, word)
    assert (config.synthetic.tau, config.negatives.keep) == (tau, keep)
    assert config.batch.pairs * config.batch.accumulation == acc
    # what all eight share
    assert optimiser.eps == 1e-6 and optimiser.eps_uncorrected  # the down-weighted terms have gradients of 1e-8 to 1e-7
    assert (optimiser.name, optimiser.betas, optimiser.weight_decay, optimiser.clip) == ("adamw", [0.9, 0.98], 0.01, 2.0)
    assert (loss.t2i, loss.i2t, loss.margin, loss.weight_replaced, loss.weight_kept) == (1.0, 1.0, 0.2, 1.0, 0.11)
    synthetic = config.synthetic
    assert (synthetic.maskings, synthetic.refills, synthetic.mask_probability) == (20, 20, 0.15)
    assert (config.negatives.count, config.negatives.shared, config.negatives.dtype) == (399, False, "model")
    assert (config.seed, config.model.dropout, config.batch.tokens) == (42, 0.1, 0)
    assert config.objective == "retrieval"
    model = config.model
    sizes = (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.intermediate_size)
    assert sizes == ((24, 1024, 16, 4096) if "large" in name else (12, 768, 12, 3072))


def test_published_pretraining():
    config = load_config("published-pretrain-base")
    optimiser = config.optimiser
    assert (optimiser.lr, optimiser.steps, optimiser.warmup_steps, optimiser.clip) == (5e-5, 200_000, 10_000, 5.0)
    assert (optimiser.betas, optimiser.weight_decay, optimiser.eps) == ([0.9, 0.98], 0.01, 1e-6)
    assert optimiser.eps_uncorrected
    assert config.pretrain.kl_reduction == "mean"
    assert (config.batch.tokens, config.batch.accumulation) == (10240, 2)
    assert config.pretrain.mix == {"itm": 2, "mlm": 2, "mrfr": 1, "mrckl": 1, "mrc": 0}
    assert (config.pretrain.mask_probability, config.pretrain.wra_weight) == (0.15, 0.1)
    model = config.model
    sizes = (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.intermediate_size)
    assert sizes == (12, 768, 12, 3072) and config.objective == "pretrain"


# arXiv 1909.02701 and 2003.03669, the released code: norms of the image side, pieces the captioner is taught
VSRN = {
    "vsrn-coco": (False, True, 60),
    "vsrn-flickr": (True, False, 40),
    "vsrn-aoq-coco": (False, True, 60),
    "vsrn-aoq-flickr": (True, False, 60),
}


@pytest.mark.parametrize("name", VSRN)
def test_published_vsrn(name):
    matcher = load_config(name).matcher
    assert (matcher.image_norm, matcher.input_norm, matcher.caption_pieces) == VSRN[name] and matcher.column_norm
    assert (matcher.word_size, matcher.embed_size, matcher.graph_layers) == (300, 2048, 4)
    assert (matcher.caption_hidden, matcher.caption_weight, matcher.caption_dropout) == (512, 1.0, 0.2)


@pytest.mark.parametrize(("name", "sharpness"), [("scan-i2t-coco", 20.0), ("scan-i2t-flickr", 5.0)])
def test_published_scan_from_images_to_text(name, sharpness):
    """arXiv 1803.08024, the released settings: all else is that of t-i on the corpus."""
    config, other = load_config(name), load_config(name.replace("i2t-", ""))
    matcher = config.matcher
    assert (matcher.direction, matcher.pooling, matcher.lambda_softmax, matcher.lambda_lse) == ("i2t", "lse", 4.0, sharpness)
    assert (other.matcher.direction, other.matcher.lambda_softmax, other.matcher.lambda_lse) == ("t2i", None, None)
    assert config.optimiser == other.optimiser and matcher.embed_size == 1024


@pytest.mark.parametrize("name", [name for name in recipe_names() if "scan" in name and "i2t" not in name])
def test_the_sharpness_of_i2t_is_never_taken_silently(name):
    text = refusal(name, ["matcher.direction=i2t"])
    assert "matcher.lambda_lse" in text and "20 on COCO (recipe scan-i2t-coco)" in text and "5 on Flickr30K" in text
    assert load_config(name, ["matcher.direction=i2t", "matcher.lambda_lse=20"]).matcher.lambda_lse == 20.0
    load_config(name, ["matcher.direction=i2t", "matcher.pooling=avg"])  # an average has none
    load_config(name, ["matcher.direction=i2t", "init=somewhere"])  # the checkpoint's counts


@pytest.mark.parametrize("name", recipe_names())
def test_adams_eps(name):
    """1e-8 in the matchers' published runs, 1e-6 in the encoder's."""
    config = load_config(name)
    assert config.optimiser.eps == (1e-8 if config.objective == "matching" else 1e-6)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("baseline-")])
def test_a_baseline_writes_nothing(name):
    loss = load_config(name).loss
    assert (loss.syn, loss.mlm, loss.disc, loss.corr) == (0.0, 0.0, 0.0, 0.0)
    assert loss.t2i == loss.i2t == 1.0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("log.export_at=[1,2", "log.export_at"),
        ("description=${nowhere}", "description"),
        ("log.every=0", "log.every"),
        ("data.window_steps=0", "data.window_steps"),
        ("optimiser.betas=[0.9]", "optimiser.betas"),
        ("pretrain.mix.itm=-1", "pretrain.mix.itm"),
        ("synthetic.mask_probability=3", "synthetic.mask_probability"),
        ("log.keep_checkpoints=-1", "log.keep_checkpoints"),
        ("optimiser.eps=0", "optimiser.eps"),
        ("matcher.caption_dropout=1", "matcher.caption_dropout"),
        ("matcher.caption_pieces=1", "matcher.caption_pieces"),
        ("pretrain.kl_reduction=average", "pretrain.kl_reduction"),
    ],
)
def test_values_that_could_only_fail_later(override, key):
    with pytest.raises(UserError, match=key.replace(".", r"\.")) as error:
        load_config("tags-base-coco", [override])
    assert "\n" not in str(error.value)


# --- a matcher's settings are those of its kind ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("matcher.caption_hidden=8", "the command line: unknown key 'matcher.caption_hidden'"),  # VSRN's
        ("matcher.directon=i2t", "unknown key 'matcher.directon': did you mean 'direction'?"),
        ("matcher.direction=i2i", "matcher.direction 'i2i': did you mean"),
        ("matcher.pooling=max", "matcher.pooling 'max': known: avg, lse."),
        ("matcher.kind=scann", "the command line: matcher.kind 'scann': did you mean 'scan'?"),
        ("matcher.lambda_softmax=0", "matcher.lambda_softmax=0.0 must be above zero"),
        ("matcher.word_size=0", "matcher.word_size=0 must be above zero"),
    ],
)
def test_settings_of_another_kind_and_wrong_ones_are_refused(override, sentence):
    assert sentence in refusal("coco-boxes-scan", [override])


def test_the_kind_is_that_of_the_last_layer(tmp_path):
    """Order of layers does not matter to which keys are known; a base of another kind takes its own settings with it."""
    scan = load_config("coco-boxes-vsrn", ["matcher.direction=i2t", "matcher.lambda_lse=5", "matcher.kind=scan"]).matcher
    assert (type(scan), scan.direction, scan.embed_size, scan.word_size) == (MATCHERS["scan"].settings, "i2t", 128, 64)
    assert not hasattr(scan, "caption_hidden")
    written(tmp_path, "ground", "matcher: {kind: vsrn, caption_hiden: 3}\n")
    assert "'matcher.caption_hiden'" in refusal(written(tmp_path, "top", "base: ground\nmatcher: {kind: bfan}\n"))


UNION = """objective: matching
recipe: old
matcher: {kind: scan, word_size: 300, embed_size: 12, graph_layers: 4, image_norm: false, column_norm: false, input_norm: true,
  caption_hidden: 512, caption_weight: 1.0, caption_dropout: 0.2, caption_pieces: 60, direction: t2i, pooling: avg, focal: equal,
  lambda_softmax: null, lambda_lse: null}
"""


def test_a_run_saved_with_the_settings_of_all_kinds(tmp_path):
    """It loads as a recipe, and a run of it is resumed, whatever the other kinds' settings were."""
    path = written(tmp_path, "config", UNION)
    config = load_config(path)
    assert config.matcher == MATCHERS["scan"].settings(embed_size=12, pooling="avg")
    assert different_settings(tmp_path / "config.yaml", dataclasses.replace(config, recipe="old")) == []
    other = written(tmp_path, "config", UNION.replace("caption_hidden: 512", "caption_hidden: 8"))
    assert different_settings(tmp_path / "config.yaml", dataclasses.replace(config, recipe="old")) == []
    assert "'matcher.caption_hidden'" in refusal(other)  # as a recipe it asks for what SCAN has not
    bfan = dataclasses.replace(config, recipe="old", matcher=MATCHERS["bfan"].settings())
    changed = different_settings(tmp_path / "config.yaml", bfan)
    assert changed == ["matcher.kind"]  # a size that is left open agrees with any


def test_what_a_saved_encoder_run_says_of_matchers_does_not_matter(tmp_path):
    config = load_config("tags-base-coco")
    save_config(config, tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    saved["matcher"] |= {"direction": "t2i", "pooling": "lse", "focal": "equal", "lambda_softmax": None, "lambda_lse": None}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert different_settings(tmp_path / "config.yaml", config) == []
    assert load_config(str(tmp_path / "config.yaml")).matcher == config.matcher
