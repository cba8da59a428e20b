"""AOQ's loss for one pair, evaluated by `tagsds.losses.quintuplet` (arXiv 2003.03669): the six terms, the adaptive weight, the four
losses of the paper."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tagsds.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, Picture, panels
from tagsds.figures.example import Example
from tagsds.losses.quintuplet import KINDS, QuintupletConfig, Similarities, quintuplet

TRUE = 0.60
NEGATIVES = {"caption_on": 0.55, "image_on": 0.50, "caption_off": 0.70, "image_off": 0.44, "both_off": 0.64, "others_off": 0.48}
"""a made-up pair: name of the field of `Similarities`, similarity"""
NAMES = {
    "caption_on": "S(I, T_on)",
    "image_on": "S(I_on, T)",
    "caption_off": "S(I, T_off)",
    "image_off": "S(I_off, T)",
    "both_off": "S(I_off, T_off)",
    "others_off": "S(I'_off, T'_off)",
}
TERM = {
    "caption_on": "online_caption",
    "image_on": "online_image",
    "caption_off": "offline_caption",
    "image_off": "offline_image",
    "both_off": "offline_both",
    "others_off": "offline_others",
}
COLOURS = dict(zip(NAMES, (BLUE, BLUE, ORANGE, ORANGE, PURPLE, PURPLE), strict=True))
HATCHES = dict(zip(NAMES, ("", "///") * 3, strict=True))  # to tell the two of a colour apart


def similarities(**values: float) -> Similarities:
    return Similarities(torch.tensor([TRUE]), **{name: torch.tensor([value]) for name, value in (NEGATIVES | values).items()})


def terms(kind: str, **values: float) -> dict[str, float]:
    """Of the made-up pair, with some similarities changed: {term: value}."""
    return {name: float(value) for name, value in quintuplet(similarities(**values), QuintupletConfig(kind=kind)).items()}


def weight(difference: float, side: str = "caption") -> float:
    """w where the offline negative scores `difference` above the online one: the adaptive term over the unweighted one."""
    name, changed = f"online_{side}", {f"{side}_off": NEGATIVES[f"{side}_on"] + difference}
    return terms("adaptive", **changed)[name] / terms("quintuplet", **changed)[name]


def draw(_: Example) -> Figure:
    figure, (pairs, curve, sums) = panels(640, [1.25, 1, 0.85])
    draw_terms(pairs)
    draw_weight(curve)
    draw_sums(sums)
    return figure


def draw_terms(axes: Axes) -> None:
    config, values = QuintupletConfig(kind="adaptive"), terms("adaptive")
    for row, (name, score) in enumerate(NEGATIVES.items()):
        online = name.endswith("_on")
        bar = TRUE - (config.margin_on if online else config.margin_off)
        axes.plot([bar, bar], [row - 0.35, row + 0.35], color=GREEN, linewidth=1.6)
        if score > bar:
            bars(axes, row, bar, score - bar, name, 0.36)
        axes.plot(score, row, marker="o", markersize=6, color=COLOURS[name])
        said = f"{values[TERM[name]]:.2f}"
        if online:
            side = name.removesuffix("_on")
            said = f"{weight(NEGATIVES[f'{side}_off'] - score, side):.2f} × {score - bar:.2f} = {said}"
        axes.text(0.76, row, said, va="center", color=COLOURS[name], weight="bold", size=10)
    axes.plot([TRUE, TRUE], [-0.5, len(NEGATIVES) - 0.5], color=GREEN, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
    axes.text(TRUE, -0.85, "S(I, T)", color=GREEN, weight="bold", ha="center", va="center")
    axes.text(TRUE - config.margin_on, -0.85, "− m_on", color=GREEN, ha="center", va="center")
    axes.text(0.76, -0.85, "w × what counts", va="center", size=10)
    axes.set_yticks(range(len(NEGATIVES)), [NAMES[name] for name in NEGATIVES])
    axes.set_ylim(len(NEGATIVES) - 0.5, -1.2)
    axes.set_xlim(0.33, 1.0)
    axes.set_xticks([0.4, 0.5, 0.6, 0.7])
    axes.set_xlabel("similarity")
    axes.set_title("Six negatives of one pair")


def bars(axes: Axes, row: float, left: float, width: float, name: str, height: float) -> None:
    """A bar in the colour of a negative."""
    axes.barh(row, width, left=left, height=height, color=COLOURS[name], hatch=HATCHES[name], edgecolor="white", linewidth=0.8)


def draw_weight(axes: Axes) -> None:
    config = QuintupletConfig(kind="adaptive")
    grid = torch.linspace(-0.3, 0.6, 91).tolist()
    axes.plot(grid, [weight(value) for value in grid], color=BLUE, linewidth=2)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
    for side, name, shift in (("caption", "w_T", (0.02, 0.12)), ("image", "w_I", (0.02, 0.12))):
        at = NEGATIVES[f"{side}_off"] - NEGATIVES[f"{side}_on"]
        axes.plot(at, weight(at, side), marker="o", markersize=6, color=BLUE)
        axes.text(at + shift[0], weight(at, side) + shift[1], f"{name} = {weight(at, side):.2f}", color=BLUE, weight="bold")
    zero = config.alpha * config.beta
    axes.text(zero - 0.01, -0.1, f"0 at α β = {zero:.2f}", color=GREY, ha="right", va="top")
    axes.text(-0.29, 0.25, "online is harder:\nit weighs more", color=GREY)
    axes.text(0.595, 1.55, "offline is harder:\nonline weighs less", color=GREY, ha="right")
    axes.set_xlim(-0.3, 0.6)
    axes.set_xlabel("offline minus online similarity")
    axes.set_ylabel("weight w of the online term")
    axes.set_title(f"w = {config.beta} − difference / {config.alpha}")


def draw_sums(axes: Axes) -> None:
    field = {term: name for name, term in TERM.items()}
    for row, kind in enumerate(KINDS):
        left = 0.0
        for term, value in terms(kind).items():
            name = field[term]
            bars(axes, row, left, value, name, 0.62)
            left += value
        axes.text(left + 0.006, row, f"{left:.2f}", va="center")
    for name, label in (("caption_on", "online"), ("caption_off", "offline, own pair"), ("both_off", "offline pairs")):
        axes.barh(0, 0, color=COLOURS[name], label=label)
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.set_ylim(len(KINDS) - 0.5, -1.5)
    axes.set_xlabel("loss of this pair (hatched: S(I_on, T))")
    axes.legend(loc="upper left", ncols=3, fontsize=10, handlelength=1, columnspacing=1, borderpad=0, bbox_to_anchor=(-0.02, 1.02))
    axes.set_title("quintuplet.kind")


PICTURE = Picture(
    "quintuplet",
    "AOQ's loss for one pair: six negatives on an axis of similarity with the part of each that counts; the weight of an online "
    "term, which falls from above 2 to below 0 as the offline negative becomes harder; and the sums for the paper's four losses.",
    draw,
)
