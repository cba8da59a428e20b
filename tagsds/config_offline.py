"""Settings of AOQ beside TAGS: the quintuplet loss and the offline candidates (method 6). Groups of `tagsds.config.RunConfig`."""

from __future__ import annotations

from dataclasses import dataclass

from tagsds.errors import UserError, nearest

QUINTUPLETS = ("", "online", "offline", "quintuplet", "adaptive")  # the kinds of tagsds.losses.quintuplet; empty: none


@dataclass
class QuintupletConfig:
    """The loss of AOQ (method 6), with the encoder's own score."""

    kind: str = ""
    """empty: none; online, offline, quintuplet (all six terms, w = 1) or adaptive"""
    margin_on: float = 0.2
    margin_off: float = 0.0
    alpha: float = 0.3
    beta: float = 1.5
    detach: bool = False
    """no gradient through w; as published it flows"""
    clamp: bool = False
    """w at least 0; as published it may fall below"""
    online: bool = True
    """false: without the online terms (offline and quintuplet only)"""
    warmup_steps: int = 0
    """matchers: in the first steps the mean over all negatives of the batch stands for the hardest, and nothing offline counts"""
    weight: float = 1.0
    """encoder: of the loss, summed over its terms and averaged over the true pairs"""


@dataclass
class OfflineConfig:
    """Hard negatives that tagsds-mine found in the whole split."""

    candidates: str = ""
    """a folder of tagsds-mine"""
    first: int = 0
    last: int = 299
    """ranks to draw from, 0 = hardest, `last` included; images are drawn from ranks first // 5 to last // 5"""
    replace_random: bool = False
    """draw the negatives of t2i and i2t from the candidates in place of random ones"""
    score: bool = True
    """draw negatives.count and keep the hardest; false: draw negatives.keep and score none"""
    remine_every: int = 0
    """steps after which candidates are found anew with the current weights; 0 = never. A matcher searches the whole split, the
    encoder re-orders the first `pool`"""
    pool: int = 64
    """hardest candidates of each image and caption that are ordered anew; the ranks behind stay"""


def needs_candidates(quintuplet: QuintupletConfig, offline: OfflineConfig) -> bool:
    """Whether a run with these settings reads the folder `offline.candidates`."""
    return quintuplet.kind not in ("", "online") or offline.replace_random


def check_offline(quintuplet: QuintupletConfig, offline: OfflineConfig, shared: bool, objective: str) -> None:
    """What contradicts itself, or lacks its folder. `shared` is negatives.shared."""
    if quintuplet.kind not in QUINTUPLETS:
        raise UserError(f"quintuplet.kind '{quintuplet.kind}': {nearest(quintuplet.kind, QUINTUPLETS[1:])}")
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
