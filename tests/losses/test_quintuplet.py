"""AOQ's loss: every kind on numbers worked by hand, the gradient through w, and the hardest of a batch against loops."""

import dataclasses

import pytest
import torch

from tagsds.losses.quintuplet import KINDS, QuintupletConfig, Similarities, hardest_in_batch, quintuplet

# One pair: S = 0.5, T_on 0.6, I_on 0.45, T_off 0.8, I_off 0.2, both 0.55, others 0.7; m_on 0.2, m_off 0, alpha 0.3, beta 1.5.
#   online hinges   0.2 + 0.6 - 0.5 = 0.3        0.2 + 0.45 - 0.5 = 0.15
#   w_T = 1.5 - (0.8 - 0.6) / 0.3 = 5/6          w_I = 1.5 - (0.2 - 0.45) / 0.3 = 7/3
#   offline hinges  0.3   0 (0.2 - 0.5 < 0)   0.05   0.2
HAND = {
    "online": {"online_caption": 0.3, "online_image": 0.15},
    "offline": {"online_caption": 0.3, "online_image": 0.15, "offline_caption": 0.3, "offline_image": 0.0},
    "quintuplet": {
        "online_caption": 0.3, "online_image": 0.15, "offline_caption": 0.3, "offline_image": 0.0, "offline_both": 0.05,
        "offline_others": 0.2,
    },
    "adaptive": {
        "online_caption": 0.25, "online_image": 0.35, "offline_caption": 0.3, "offline_image": 0.0, "offline_both": 0.05,
        "offline_others": 0.2,
    },
}  # fmt: skip
NAMES = ("true", "caption_on", "image_on", "caption_off", "image_off", "both_off", "others_off")


def one_pair(**changes) -> Similarities:
    values = dict(zip(NAMES, (0.5, 0.6, 0.45, 0.8, 0.2, 0.55, 0.7))) | changes
    return Similarities(**{name: torch.tensor([value], requires_grad=True) for name, value in values.items()})


def floats(terms: dict) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


def gradient(s: Similarities, terms: dict) -> dict[str, float]:
    scores = [getattr(s, name) for name in NAMES]
    found = torch.autograd.grad(sum(terms.values()), scores, allow_unused=True)
    return {name: 0.0 if g is None else float(g) for name, g in zip(NAMES, found)}


def test_the_settings_know_the_kinds():
    assert ("", *KINDS) == ("", *KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pair_by_hand(kind):
    terms = quintuplet(one_pair(), QuintupletConfig(kind=kind))
    assert floats(terms) == pytest.approx(HAND[kind], abs=1e-6)
    assert all(term.shape == () and term.dtype == torch.float32 for term in terms.values())
    none = {name: None for name in NAMES[3:]}
    if kind == "online":  # needs no offline scores
        similarities = dataclasses.replace(one_pair(), **none)
        assert quintuplet(similarities, QuintupletConfig(kind=kind))["online_caption"].item() == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["offline", "quintuplet"])
def test_without_the_online_terms(kind):
    terms = quintuplet(one_pair(), QuintupletConfig(kind=kind, online=False))
    wanted = {name: value for name, value in HAND[kind].items() if name.startswith("offline")}
    assert floats(terms) == pytest.approx(wanted, abs=1e-6)


def test_gradient_through_w_by_hand():
    """d/dT_on = w_T + hinge / alpha = 5/6 + 1, d/dT_off = 1 - 0.3 / 0.3 = 0; d/dI_on = 7/3 + 0.5, d/dI_off = 0 - 0.5;
    d/dS = -w_T - w_I - 3 open offline hinges. Detached, only the hinges count."""
    s = one_pair()
    through = {"true": -5 / 6 - 7 / 3 - 3, "caption_on": 11 / 6, "image_on": 17 / 6, "caption_off": 0, "image_off": -0.5}
    adaptive = QuintupletConfig(kind="adaptive")
    assert gradient(s, quintuplet(s, adaptive)) == pytest.approx(through | {"both_off": 1, "others_off": 1}, abs=1e-5)
    s = one_pair()
    fixed = {"true": -5 / 6 - 7 / 3 - 3, "caption_on": 5 / 6, "image_on": 7 / 3, "caption_off": 1, "image_off": 0}
    terms = quintuplet(s, QuintupletConfig(kind="adaptive", detach=True))
    assert floats(terms) == pytest.approx(HAND["adaptive"], abs=1e-6)
    assert gradient(s, terms) == pytest.approx(fixed | {"both_off": 1, "others_off": 1}, abs=1e-5)


def test_w_below_zero_is_kept_unless_clamped():
    """T_on 0.31 and T_off 0.91: w_T = 1.5 - 0.6 / 0.3 = -0.5, hinge 0.2 + 0.31 - 0.5 = 0.01."""
    s = one_pair(caption_on=0.31, caption_off=0.91)
    assert float(quintuplet(s, QuintupletConfig(kind="adaptive"))["online_caption"]) == pytest.approx(-0.5 * 0.01, abs=1e-6)
    clamped = quintuplet(s, QuintupletConfig(kind="adaptive", clamp=True))
    assert float(clamped["online_caption"]) == 0
    assert float(clamped["online_image"]) == pytest.approx(0.35, abs=1e-6)  # w_I = 7/3 is above zero: as it was
    assert gradient(s, clamped)["caption_on"] == 0


def test_margins_alpha_and_beta():
    """m_on 0.1, m_off 0.4, alpha 0.5, beta 1: w_T = 1 - 0.4 = 0.6 on 0.2; w_I = 1 + 0.5 = 1.5 on 0.05; 0.4 + .. - 0.5 each."""
    terms = quintuplet(one_pair(), QuintupletConfig(kind="adaptive", margin_on=0.1, margin_off=0.4, alpha=0.5, beta=1.0))
    assert list(floats(terms).values()) == pytest.approx([0.12, 0.075, 0.7, 0.1, 0.45, 0.6], abs=1e-6)


def literal(v: dict[str, list[float]], valid, kind: str) -> dict[str, float]:
    """The formulas of the paper, pair by pair."""
    out: dict[str, float] = {}
    for b, true in enumerate(v["true"]):
        for side, name in enumerate(("caption", "image")):
            w = 1.5 - (v[f"{name}_off"][b] - v[f"{name}_on"][b]) / 0.3 if kind == "adaptive" else 1.0
            term = w * max(0.2 + v[f"{name}_on"][b] - true, 0.0) if valid[b][side] else 0.0
            out[f"online_{name}"] = out.get(f"online_{name}", 0.0) + term
        for name, key in zip(("offline_caption", "offline_image", "offline_both", "offline_others"), NAMES[3:]):
            if kind in ("quintuplet", "adaptive") or (kind == "offline" and "_off" in key and key[0] in "ci"):
                out[name] = out.get(name, 0.0) + max(v[key][b] - true, 0.0)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_against_the_loop_some_rows_not_valid(kind):
    torch.manual_seed(3)
    values = {name: torch.rand(9) for name in NAMES}
    valid = torch.rand(9, 2) > 0.3
    assert not valid.all() and valid.any()
    wanted = literal({name: x.tolist() for name, x in values.items()}, valid.tolist(), kind)
    for filler in (0.0, float("nan"), float("inf")):
        marked = dict(values)
        for side, name in enumerate(("caption_on", "image_on")):
            marked[name] = values[name].masked_fill(~valid[:, side], filler)
        s = Similarities(**{name: x.clone().requires_grad_() for name, x in marked.items()}, on_valid=valid)
        terms = quintuplet(s, QuintupletConfig(kind=kind))
        assert floats(terms) == pytest.approx(wanted, abs=1e-5)
        for side, name in enumerate(("caption_on", "image_on")):
            (g,) = torch.autograd.grad(sum(terms.values()), getattr(s, name), retain_graph=True)
            assert g.isfinite().all() and (g[~valid[:, side]] == 0).all()
        (g,) = torch.autograd.grad(sum(terms.values()), s.true)
        assert g.isfinite().all()


def test_no_valid_row_is_a_zero_on_the_graph():
    s = dataclasses.replace(one_pair(), on_valid=torch.zeros(1, 2, dtype=torch.bool))
    terms = quintuplet(s, QuintupletConfig(kind="adaptive"))
    assert float(terms["online_caption"]) == float(terms["online_image"]) == 0
    assert gradient(s, terms)["true"] == -3  # the offline hinges alone


def test_half_precision_scores_are_summed_in_float32():
    s = one_pair()
    half = Similarities(**{name: getattr(s, name).half() for name in NAMES})
    assert quintuplet(half, QuintupletConfig(kind="adaptive"))["online_image"].dtype == torch.float32


# --- the hardest of a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [[5, 2, 9, 4], [5, 2, 5, 4, 2, 5], [1, 1, 1], [3]])
def test_hardest_in_batch_against_a_loop(own):
    """Several pairs of one image: none of its captions is a negative, on or off the diagonal."""
    torch.manual_seed(len(own))
    size = len(own)
    scores = torch.randn(size, size, requires_grad=True)
    caption_on, image_on, valid = hardest_in_batch(scores, torch.tensor(own), torch.tensor(own))
    wanted = torch.zeros(size, size)  # the gradient of the sum of what is valid
    for b in range(size):
        others = [j for j in range(size) if own[j] != own[b]]
        assert valid[b].tolist() == [bool(others)] * 2
        if others:
            t, i = max(others, key=lambda j: float(scores[b, j])), max(others, key=lambda j: float(scores[j, b]))
            assert float(caption_on[b]) == float(scores[b, t]) and float(image_on[b]) == float(scores[i, b])
            wanted[b, t] += 1
            wanted[i, b] += 1
    (g,) = torch.autograd.grad((torch.stack([caption_on, image_on], dim=1) * valid).sum(), scores)
    assert torch.equal(g, wanted)


def test_a_batch_of_one_image_adds_nothing_online():
    scores, own = torch.rand(3, 3, requires_grad=True), torch.tensor([7, 7, 7])
    caption_on, image_on, valid = hardest_in_batch(scores, own, own)
    terms = quintuplet(Similarities(scores.diagonal(), caption_on, image_on, on_valid=valid), QuintupletConfig(kind="online"))
    assert list(floats(terms).values()) == [0, 0]
    (g,) = torch.autograd.grad(sum(terms.values()), scores)
    assert float(g.abs().sum()) == 0
