"""The runs of an experiment: what each starts from, its recipe and settings, and what it is asked at its end."""

from __future__ import annotations

from dataclasses import dataclass

from tagsds.config import load_config

SETS = ("tagsdc", "late", "matchers", "join", "full")
MATCHER_KINDS = ("vsrn", "scan", "bfan")


@dataclass(frozen=True)
class Stage:
    """A run: its name, the recipe, the stage it starts from (and the folder in it), settings over the recipe's, the stage whose
    offline candidates it draws from, and the stage whose encoders of all seeds teach it."""

    name: str
    recipe: str
    init: str = ""
    evaluated: bool = True
    overrides: tuple[str, ...] = ()
    candidates: str = ""
    teachers: str = ""


def stages(corpus: str, which: str = "tagsdc") -> list[Stage]:
    """tagsdc    pre-training, then three fine-tunings of it with as many steps each: baseline, TAGS, and TAGS-DC, whose second
              part starts from TAGS' intermediate export
    late      equal time: baseline steps at a constant rate, then ends of them in which the rate falls to zero: the baseline's, and
              TAGS-DC's with two weights of lambda_syn, of half as many steps that take twice as long each (starts from `tagsdc`'s
              pre-training)
    matchers  VSRN, SCAN and BFAN with the online triplet; from there a second round with it and one with AOQ's adaptive quintuplet
              (for SCAN also the two losses between), as long as each other
    join      what the encoder gains from offline candidates and from the quintuplet terms (starts from `tagsdc`'s runs); the last
              two are taught by the baselines of all seeds, with and without candidates that these judge
    full      the same at twice the width, each fine-tuning taught by the baselines of `tagsdc` of all seeds; then baseline and
              TAGS-DC whose teachers judge VSRN's candidates, too
    """
    if which == "full":

        def full(name: str, recipe: str, init: str, evaluated: bool = True) -> Stage:
            judged = ("distil.offline=4",)
            return Stage(name, f"{corpus}-full-{recipe}", init, evaluated, judged, candidates="vsrn", teachers="baseline")

        return [
            Stage("full-pretrain", f"{corpus}-full-pretrain", evaluated=False),
            Stage("full-baseline", f"{corpus}-full-baseline", "full-pretrain/export", teachers="baseline"),
            Stage("full-tags", f"{corpus}-full-tags", "full-pretrain/export", teachers="baseline"),
            Stage("full-tagsdc", f"{corpus}-full-tagsdc", "full-tags/export-stage2", teachers="baseline"),
            Stage("vsrn", f"{corpus}-vsrn", evaluated=False),
            full("full-offline", "baseline", "full-pretrain/export"),
            full("full-tags-offline", "tags", "full-pretrain/export", evaluated=False),
            full("full-tagsdc-offline", "tagsdc", "full-tags-offline/export-stage2"),
        ]
    if which == "late":
        constant, end = ("optimiser.steps=3200", "optimiser.decay_at=[3200]"), ("optimiser.steps=1600", "optimiser.warmup_steps=25")
        written = ("optimiser.steps=800", "optimiser.lr=1.5e-3")
        return [
            Stage("trunk", f"{corpus}-baseline", "pretrain/export", evaluated=False, overrides=constant),
            Stage("late-baseline", f"{corpus}-baseline", "trunk/export", overrides=end),
            Stage("late-tagsdc", f"{corpus}-tagsdc", "trunk/export", overrides=written),
            Stage("late-tagsdc-heavy", f"{corpus}-tagsdc", "trunk/export", overrides=(*written, "loss.syn=0.3")),
        ]
    if which == "matchers":
        first = [Stage(kind, f"{corpus}-{kind}") for kind in MATCHER_KINDS]
        return [*first, *(
            Stage(f"{kind}-2-{loss}", f"{corpus}-{kind}-aoq", f"{kind}/export", True, (f"quintuplet.kind={loss}",), "vsrn")
            for kind in MATCHER_KINDS
            for loss in (("online", "offline", "quintuplet", "adaptive") if kind == "scan" else ("online", "adaptive"))
        )]  # fmt: skip
    if which == "join":
        drawn, starts = ("offline.replace_random=true", "negatives.shared=false", "negatives.count=23"), "pretrain/export"
        unscored, behind = (*drawn, "offline.score=false"), ("offline.first=300", "offline.last=1999")
        adaptive, no_margin = ("quintuplet.kind=adaptive",), ("loss.t2i=0", "loss.i2t=0")
        judged = (*no_margin, "distil.offline=4")
        return [
            Stage("baseline-offline", f"{corpus}-baseline", starts, overrides=drawn, candidates="vsrn"),
            Stage("baseline-far", f"{corpus}-baseline", starts, overrides=(*drawn, *behind), candidates="vsrn"),
            Stage("baseline-unscored", f"{corpus}-baseline", starts, overrides=unscored, candidates="vsrn"),
            Stage("baseline-aoq", f"{corpus}-baseline", starts, overrides=adaptive, candidates="vsrn"),
            Stage("tags-far", f"{corpus}-tags", starts, evaluated=False, overrides=(*drawn, *behind), candidates="vsrn"),
            Stage("tagsdc-far", f"{corpus}-tagsdc", "tags-far/export-stage2", overrides=(*drawn, *behind), candidates="vsrn"),
            Stage("tags-aoq", f"{corpus}-tags", starts, evaluated=False, overrides=adaptive, candidates="vsrn"),
            Stage("tagsdc-aoq", f"{corpus}-tagsdc", "tags-aoq/export-stage2", overrides=adaptive, candidates="vsrn"),
            Stage("taught", f"{corpus}-baseline", starts, overrides=no_margin, teachers="baseline"),
            Stage("taught-offline", f"{corpus}-baseline", starts, overrides=judged, candidates="vsrn", teachers="baseline"),
        ]
    return [
        Stage("pretrain", f"{corpus}-pretrain", evaluated=False),
        Stage("baseline", f"{corpus}-baseline", "pretrain/export"),
        Stage("tags", f"{corpus}-tags", "pretrain/export"),
        Stage("tagsdc", f"{corpus}-tagsdc", "tags/export-stage2"),
    ]


def asked_of(stage: Stage, evaluation: list[str]) -> list[str]:
    """Without what it cannot or should not be asked: a matcher has no masked-word head, and that of an encoder which was trained
    without its loss is stale, no judge of a whole ranking."""
    config = load_config(stage.recipe)
    unfit = {"--likelihood", "--rescore"} if config.objective != "retrieval" else {"--rescore"} if not config.loss.mlm else set()
    return [option for option in evaluation if option not in unfit]
