"""The runs of an experiment: what each starts from, its recipe and settings, and what it is asked at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tagsds.config import load_config

MATCHER_KINDS = ("vsrn", "scan", "bfan")
JUDGED = ("distil.offline=4",)  # teachers judge that many of a matcher's candidates in each direction


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


def tagsdc(corpus: str) -> list[Stage]:
    """Pre-training, then three fine-tunings of it with as many steps each: baseline, TAGS, and TAGS-DC, whose second part starts
    from TAGS' intermediate export."""
    return [
        Stage("pretrain", f"{corpus}-pretrain", evaluated=False),
        Stage("baseline", f"{corpus}-baseline", "pretrain/export"),
        Stage("tags", f"{corpus}-tags", "pretrain/export"),
        Stage("tagsdc", f"{corpus}-tagsdc", "tags/export-stage2"),
    ]


def late(corpus: str) -> list[Stage]:
    """Equal time: baseline steps at a constant rate, then ends of them in which the rate falls to zero: the baseline's, and
    TAGS-DC's with two weights of lambda_syn, of half as many steps that take twice as long each (starts from `tagsdc`'s
    pre-training)."""
    written = end(800, "1.5e-3")
    return [
        Stage("trunk", f"{corpus}-baseline", "pretrain/export", evaluated=False, overrides=constant(3200)),
        Stage("late-baseline", f"{corpus}-baseline", "trunk/export", overrides=end(1600, "1.5e-3")),
        Stage("late-tagsdc", f"{corpus}-tagsdc", "trunk/export", overrides=written),
        Stage("late-tagsdc-heavy", f"{corpus}-tagsdc", "trunk/export", overrides=(*written, "loss.syn=0.3")),
    ]


PARTS = {
    "frozen": ("synthetic.writer=frozen",),
    "words": ("synthetic.writer=words",),
    "unfiltered": ("synthetic.drop_true=false",),
    "headless": ("loss.disc=0", "loss.corr=0"),
    "unwritten": ("loss.syn=0", "loss.disc=0", "loss.corr=0"),
}
"""Ablations of TAGS-DC: the encoder of the trunk writes (static), phrases of the corpus by frequency in the place of the encoder's,
no filter of true sentences, no discrimination and correction, and the masked-word loss alone."""


def parts(corpus: str) -> list[Stage]:
    """TAGS-DC's end of `late` with one part of PARTS less (starts from its trunk)."""
    written = end(800, "1.5e-3")
    return [Stage(f"late-{name}", f"{corpus}-tagsdc", "trunk/export", overrides=(*written, *less)) for name, less in PARTS.items()]


def constant(steps: int) -> tuple[str, ...]:
    """A trunk's rate, which does not fall."""
    return (f"optimiser.steps={steps}", f"optimiser.decay_at=[{steps}]")


def end(steps: int, rate: str) -> tuple[str, ...]:
    """From a trunk on, the rate falls to zero."""
    return (f"optimiser.steps={steps}", f"optimiser.lr={rate}", "optimiser.warmup_steps=25")


def matchers(corpus: str) -> list[Stage]:
    """VSRN, SCAN and BFAN with the online triplet; from there a second round with it and one with AOQ's adaptive quintuplet (for
    SCAN also the two losses between), as long as each other."""
    first = [Stage(kind, f"{corpus}-{kind}") for kind in MATCHER_KINDS]
    return [*first, *(
        Stage(f"{kind}-2-{loss}", f"{corpus}-{kind}-aoq", f"{kind}/export", True, (f"quintuplet.kind={loss}",), "vsrn")
        for kind in MATCHER_KINDS
        for loss in (("online", "offline", "quintuplet", "adaptive") if kind == "scan" else ("online", "adaptive"))
    )]  # fmt: skip


def join(corpus: str) -> list[Stage]:
    """What the encoder gains from offline candidates and from the quintuplet terms (starts from `tagsdc`'s runs); the last two
    are taught by the baselines of all seeds, with and without candidates that these judge."""
    drawn, starts = ("offline.replace_random=true", "negatives.shared=false", "negatives.count=23"), "pretrain/export"
    unscored, behind = (*drawn, "offline.score=false"), ("offline.first=300", "offline.last=1999")
    adaptive, no_margin = ("quintuplet.kind=adaptive",), ("loss.t2i=0", "loss.i2t=0")
    judged = (*no_margin, *JUDGED)
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


def full(corpus: str) -> list[Stage]:
    """The runs of `tagsdc` at twice the width, each fine-tuning taught by the baselines of `tagsdc` of all seeds; then baseline
    and TAGS-DC whose teachers judge VSRN's candidates, too."""
    return [
        Stage("full-pretrain", f"{corpus}-full-pretrain", evaluated=False),
        Stage("full-baseline", f"{corpus}-full-baseline", "full-pretrain/export", teachers="baseline"),
        Stage("full-tags", f"{corpus}-full-tags", "full-pretrain/export", teachers="baseline"),
        Stage("full-tagsdc", f"{corpus}-full-tagsdc", "full-tags/export-stage2", teachers="baseline"),
        Stage("vsrn", f"{corpus}-vsrn", evaluated=False),
        judged_stage("full-offline", f"{corpus}-full-baseline", "full-pretrain/export"),
        judged_stage("full-tags-offline", f"{corpus}-full-tags", "full-pretrain/export", evaluated=False),
        judged_stage("full-tagsdc-offline", f"{corpus}-full-tagsdc", "full-tags-offline/export-stage2"),
    ]


def full_late(corpus: str) -> list[Stage]:
    """Equal time at twice the width, trunk and ends taught by the baselines of all seeds, which judge VSRN's candidates (starts
    from `full`'s pre-training and matcher). Beside candidates a step that writes takes half as long again."""
    return [
        judged_stage("full-trunk", f"{corpus}-full-baseline", "full-pretrain/export", constant(3200), evaluated=False),
        judged_stage("full-late-baseline", f"{corpus}-full-baseline", "full-trunk/export", end(1200, "1e-3")),
        judged_stage("full-late-tagsdc", f"{corpus}-full-tagsdc", "full-trunk/export", end(800, "1e-3")),
    ]


def judged_stage(name: str, recipe: str, init: str, overrides: tuple[str, ...] = (), evaluated: bool = True) -> Stage:
    """Taught by the baselines of all seeds, which judge VSRN's candidates."""
    return Stage(name, recipe, init, evaluated, (*overrides, *JUDGED), candidates="vsrn", teachers="baseline")


SETS: dict[str, Callable[[str], list[Stage]]] = {
    "tagsdc": tagsdc, "late": late, "parts": parts, "matchers": matchers, "join": join, "full": full,
    "full-late": full_late,
}  # fmt: skip


def stages(corpus: str, which: str = "tagsdc") -> list[Stage]:
    """The runs of one of SETS, in their order."""
    return SETS[which](corpus)


def asked_of(stage: Stage, evaluation: list[str]) -> list[str]:
    """Without what it cannot or should not be asked: a matcher has no masked-word head, and that of an encoder which was trained
    without its loss is stale, no judge of a whole ranking."""
    config = load_config(stage.recipe)
    unfit = {"--likelihood", "--rescore"} if config.objective != "retrieval" else {"--rescore"} if not config.loss.mlm else set()
    return [option for option in evaluation if option not in unfit]
