"""Memory of a rank, in bytes.

P = trained parameters, Q = frozen ones, N = ranks, w = bytes of a weight (4 in fp32, 2 in bf16 and fp16), g = bytes of a summed
gradient; H, F, A, V, D as in work.py. Sources: states of ZeRO stages: Rajbhandari et al. 2020 (arXiv 1910.02054), section 5, with
what DeepSpeed 0.19.8 keeps besides; activations: Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1, for a stream that is
not padded. How near they come is measured in docs/results/zero.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tagsds.config import RunConfig
from tagsds.engine.ds_config import offloads, zero_stage
from tagsds.estimate.corpus import Corpus
from tagsds.estimate.parts import GIB, Part
from tagsds.estimate.work import Forward, Sizes, Work

FEWER_PAIRS = "a smaller batch.pairs with more batch.accumulation"
HIGHER_STAGE = "a higher ZeRO stage, more ranks, or offloading"
CHECKPOINTING = "batch.activation_checkpointing=true, or " + FEWER_PAIRS
PROCESS = 0.4 * GIB  # Python, torch and DeepSpeed of a rank: the RSS of docs/results/startup.md less the bank's pages
CHUNK = {"cuda": 131072, "cpu": 16384}  # tokens: Scorer.tokens_of_chunk


@dataclass(frozen=True)
class Machine:
    """device: "cuda" or "cpu"; ranks of the run, and of one machine."""

    device: str
    ranks: int
    ranks_of_node: int


@dataclass(frozen=True)
class Parameters:
    """trained, frozen: how many; largest: of one module, which ZeRO 3 gathers whole; buffers are left out."""

    trained: int
    frozen: int
    largest: int


def weight_bytes(ds: dict[str, Any]) -> int:
    """w."""
    return 2 if any(ds.get(name, {}).get("enabled") for name in ("bf16", "fp16")) else 4


def gradient_bytes(ds: dict[str, Any]) -> int:
    """g: data_types.grad_accum_dtype, else the weights' own precision."""
    given = ds.get("data_types", {}).get("grad_accum_dtype")
    return weight_bytes(ds) if given is None else 4 if given == "fp32" else 2


def state_parts(parameters: Parameters, ds: dict[str, Any], machine: Machine, recomputed: bool) -> list[Part]:
    """Weights, gradients, optimiser, buffers.

    weights     w (P + Q); stage 3: divided by N, and at a time a prefetch bucket and the largest module gathered, in w; and where
                layers are not recomputed, w (P + Q) once more: the graph keeps what a layer's products have read until backward
    gradients   stage 0: w P; stage 1: w P where micro-batches are summed, and in bf16 with sums in fp32 4 P besides, for good; else
                g P / N, which stage 3 keeps for good. What is not yet reduced lies in the buckets
    master      4 P / N: DeepSpeed keeps it in fp32 as well; stage 0: none in fp32, 4 P in fp16
    Adam        8 P, two moments in fp32; from stage 1 on divided by N
    step        4 P / N: the fp32 copy of the gradient's share, while the optimiser runs
    buckets     reduce_bucket_size numbers of w bytes, twice with overlap_comm (stages 1, 2: in backward; stage 3: one, for good)

    With offload_optimizer, master weights, Adam and the gradient's share with its fp32 copy lie in the host's memory for good;
    with offload_param the weights too.
    """
    stage, w, g, N = zero_stage(ds), weight_bytes(ds), gradient_bytes(ds), machine.ranks
    summed = int(ds.get("gradient_accumulation_steps", 1)) > 1
    P, Q = parameters.trained, parameters.frozen
    zero = ds.get("zero_optimization", {})
    shared = N if stage else 1
    kept = "host" if offloads(ds) and stage else "device"
    off_weights = stage == 3 and zero.get("offload_param", {}).get("device", "none") != "none"
    parts = [Part("weights", w * (P + Q) / (N if stage == 3 else 1), "host" if off_weights else "device", remedy=HIGHER_STAGE)]
    if stage or w == 2:
        parts.append(Part("fp32 master weights", 4 * P / shared, kept, remedy=HIGHER_STAGE))
    parts.append(Part("Adam's two moments", 8 * P / shared, kept, remedy=HIGHER_STAGE))
    own_sums = stage == 1 and g > w and kept == "device"
    if stage == 0 or own_sums or (stage == 1 and summed):
        parts.append(Part("gradients", w * P, at="backward", remedy="ZeRO stage 2 or 3"))
    if own_sums:
        parts.append(Part("gradients summed in fp32", 4 * P, remedy="ZeRO stage 2 or 3"))
    elif stage:
        at = "always" if stage == 3 or kept == "host" else "backward"
        parts.append(Part("this rank's share of the gradients", g * P / N, kept, at, HIGHER_STAGE))
        at = "always" if kept == "host" else "step"
        parts.append(Part("fp32 copy of the gradients' share", 4 * P / N, kept, at, HIGHER_STAGE))
    if stage:
        overlap = zero.get("overlap_comm", stage == 3)
        buffers = 2 if overlap and stage < 3 else 1
        if zero.get("contiguous_gradients", True):
            size = int(zero.get("reduce_bucket_size", 5e8)) * w * buffers
            at = "always" if stage == 3 else "backward"
            parts.append(Part("reduce buckets", size, "device", at, "a smaller zero_optimization.reduce_bucket_size"))
    if stage == 3:
        live = min(P + Q, int(zero.get("stage3_prefetch_bucket_size", 5e7)) + parameters.largest)
        parts.append(Part("gathered weights", w * live, at="backward", remedy="a smaller stage3_prefetch_bucket_size"))
        if not recomputed:
            parts.append(Part("gathered weights that the graph holds", w * (P + Q), at="backward", remedy=CHECKPOINTING))
    return parts


@dataclass(frozen=True)
class Encoder:
    """What the activations depend on: sizes, bytes of a number (w), dropout of states, the device, and whether the layers are
    recomputed."""

    sizes: Sizes
    w: int
    dropout: float
    device: str
    checkpointing: bool

    def layer(self, tokens: float) -> float:
        """What one layer keeps for backward, w H tokens (8 + 2 F / H): its input, queries, keys, values, attention's sum, the two
        products that are normalised, the feed-forward's input, and F twice inside it.

        Korthikanti et al. (arXiv 2205.05198) have s b h (34 + 5 a s / h) for w = 2 and F = 4 H. This is s b h 32: the kernels keep
        no softmax, and draw the two dropout masks again. Where they are missing (no compiler, no Triton), plain torch keeps more.
        """
        return self.w * self.sizes.hidden * tokens * (8 + 2 * self.sizes.intermediate / self.sizes.hidden)

    def trained(self, forward: Forward, corpus: Corpus) -> float:
        """The forward with a gradient: l layers, the last one with q for the kept positions, k and v for all; or w H tokens a layer
        and one whole layer, where they are recomputed; and the two tables: D of a region, and w H (x, q, k, v and the inputs of one
        LayerNorm for pieces, three for regions), with a dropout mask."""
        H, w, layers = self.sizes.hidden, self.w, self.sizes.layers
        tokens = forward.pairs * corpus.tokens
        pieces, regions = forward.texts * corpus.pieces, forward.images * corpus.regions_of_image
        mask = (w if self.device == "cpu" else 1) if self.dropout else 0
        tables = w * H * (5 * pieces + 7 * regions) + mask * H * (pieces + regions) + (w + 2) * corpus.feature_dim * regions
        last = self.layer(min(forward.keep, tokens)) + w * H * tokens * 3
        if self.checkpointing:
            return tables + w * H * tokens * (layers + 3) + (self.layer(tokens) if layers > 1 else last)
        return tables + (layers - 1) * self.layer(tokens) + last

    def scored(self, forward: Forward, corpus: Corpus, chunk: float = 0) -> float:
        """A forward without a gradient, `chunk` tokens at a time (0: at once): w H (4 + 2 F / H) a token of a chunk for states, q,
        k, v and the inside of the feed-forward; tables of 4 w H a row, and their features."""
        H, F, w = self.sizes.hidden, self.sizes.intermediate, self.w
        tokens = forward.pairs * corpus.tokens
        rows = forward.texts * corpus.pieces + forward.images * corpus.regions_of_image
        tables = 4 * w * H * rows + (w + 2) * corpus.feature_dim * forward.images * corpus.regions_of_image
        return tables + w * H * (4 + 2 * F / H) * (min(tokens, chunk) if chunk else tokens)


def encoder_parts(work: Work, corpus: Corpus, encoder: Encoder) -> list[Part]:
    """Activations and logits of the phases of a micro-batch, which follow one another.

    logits    V a position: w, fp32 log-softmax and its input (4 + 4), and its gradient in backward (4 + w)
    """
    w, V = encoder.w, encoder.sizes.vocabulary
    chunk = CHUNK[encoder.device]
    remedy = FEWER_PAIRS if encoder.checkpointing else CHECKPOINTING
    mined = encoder.scored(work.mined, corpus, chunk)
    written = max(encoder.scored(work.written, corpus, chunk),
                  encoder.scored(work.refilled, corpus) + work.refilled.words * V * (w + 12))  # fmt: skip
    return [
        Part("activations", encoder.trained(work.trained, corpus), at="backward", remedy=remedy),
        Part("logits over the vocabulary", work.trained.words * V * (2 * w + 12), at="backward", remedy=FEWER_PAIRS),
        Part("mining without a gradient, a chunk", mined, at="mining", remedy=FEWER_PAIRS),
        Part("writing without a gradient", written, at="writing", remedy=FEWER_PAIRS),
    ]


def bank_parts(config: RunConfig, corpus: Corpus, machine: Machine) -> list[Part]:
    """The corpus in memory: all of it where the shards are at most data.max_gib, else a window of as many shards as fit.

    On a GPU each rank holds its features; the host's pages of the mapped cache are the kernel's, which may drop them. On a CPU the
    ranks of a node share the pages of a whole split; a window is joined in each rank's own memory.
    """
    sizes, most = corpus.shard_bytes, config.data.max_gib * GIB
    whole = sum(sizes) <= most
    share = 1.0 if whole else min(1.0, int(most / max(sizes)) * max(sizes) / sum(sizes))
    held = corpus.table_bytes * share
    name = "bank: the whole split" if whole else f"bank: a window of {int(most / max(sizes))} of {len(sizes)} shards"
    remedy = "a smaller data.max_gib, which walks through windows of shards"
    if machine.device == "cuda":
        return [Part(name, held, remedy=remedy), Part("pages of the mapped cache (the kernel's)", held, "node", "cache")]
    if whole and config.data.cache != "none":
        return [Part(name + ", mapped pages shared by the ranks of a node", held / machine.ranks_of_node, remedy=remedy)]
    return [Part(name, held, remedy=remedy)]
