"""Small encoders, pairs for them, and the encoder's literal form.

The reference is written from the formulas (BERT, arXiv 1810.04805; UNITER, arXiv 1909.11740) on one padded batch:
every pair holds its own copy of its text and image, LayerNorm, GELU and softmax are spelt out, and the weights are the
model's own parameters, read by name, so that gradients can be compared parameter by parameter.
"""

import math

import torch
from torch import Tensor

from tagsds.data.pairs import Images, Pairs, geometry_of
from tagsds.data.ragged import Ragged
from tagsds.models import UniterConfig, UniterModel

HEADS, WIDTH, REGION_DIM = 4, 24, 10


def config(**changes) -> UniterConfig:
    sizes = dict(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=40,
        max_position_embeddings=16,
        region_dim=REGION_DIM,
        num_region_classes=7,
    )
    return UniterConfig(**(sizes | changes))


def model_of(seed: int = 0, **changes) -> UniterModel:
    """In eval mode, every parameter off its initial value (LayerNorm off 1, biases and mask embedding off 0)."""
    torch.manual_seed(seed)
    model = UniterModel(config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def boxes(count: int) -> Tensor:
    corners = torch.rand(count, 2, 2).sort(dim=1).values  # x1 < x2, y1 < y2
    return corners.flatten(1)


def pairs_of(
    texts: list[int],
    images: list[int],
    held: list[tuple[int, int]],
    masked: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Pairs:
    """Tables with the given lengths and the given (text, image) pairs."""
    torch.manual_seed(1)
    regions = sum(images)
    table = Images(
        Ragged(torch.randn(regions, REGION_DIM, dtype=dtype), torch.tensor(images)),
        geometry_of(boxes(regions).to(dtype)),
        torch.rand(regions) < 0.4 if masked else None,
    )
    text_of_pair, image_of_pair = (torch.tensor(column) for column in zip(*held))
    return Pairs(Ragged(torch.randint(1, 50, (sum(texts),)), torch.tensor(texts)), table, text_of_pair, image_of_pair)


RAGGED = dict(
    texts=[4, 2, 7, 5],
    images=[3, 1, 6],
    held=[(0, 0), (2, 2), (2, 0), (1, 1), (0, 0), (3, 2), (2, 1)],  # rows repeated, (0, 0) even as a pair; all are used
)


# --- the reference -------------------------------------------------------------------------------------------------


def norm(x: Tensor, p: dict, name: str) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-12) * p[f"{name}.weight"] + p[f"{name}.bias"]


def dense(x: Tensor, p: dict, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def transform(x: Tensor, p: dict, name: str) -> Tensor:
    return norm(gelu(dense(x, p, f"{name}.dense")), p, f"{name}.norm")


def reference(p: dict[str, Tensor], pairs: Pairs, layers: int) -> list[Tensor]:
    """States of each pair, [length, H] each, computed in one padded batch."""
    sequences = []
    for text, image in zip(pairs.text_of_pair.tolist(), pairs.image_of_pair.tolist()):
        ids = pairs.texts[text]
        words = (
            p["text_embedding.word.weight"][ids]
            + p["text_embedding.position.weight"][: len(ids)]
            + p["text_embedding.token_type.weight"][0]
        )
        rows = slice(int(pairs.images.lengths[:image].sum()), int(pairs.images.lengths[: image + 1].sum()))
        feature = pairs.images.regions.values[rows]
        if pairs.images.masked is not None:
            hidden = pairs.images.masked[rows, None].to(feature.dtype)
            feature = feature * (1 - hidden) + p["image_embedding.mask"] * hidden
        x1, y1, x2, y2 = pairs.images.geometry[rows, :4].unbind(dim=1)
        box = torch.stack([x1, y1, x2, y2, x2 - x1, y2 - y1, (x2 - x1) * (y2 - y1)], dim=1)
        regions = (
            norm(dense(feature, p, "image_embedding.feature"), p, "image_embedding.feature_norm")
            + norm(dense(box, p, "image_embedding.box"), p, "image_embedding.box_norm")
            + p["text_embedding.token_type.weight"][1]
        )
        sequences.append(torch.cat([norm(words, p, "text_embedding.norm"), norm(regions, p, "image_embedding.norm")]))

    lengths = [len(sequence) for sequence in sequences]
    longest, size = max(lengths), WIDTH // HEADS
    x = torch.stack([torch.cat([s, s.new_full((longest - len(s), WIDTH), 3.0)]) for s in sequences])  # [P, L, H]
    absent = torch.arange(longest)[None, :] >= torch.tensor(lengths)[:, None]
    for n in range(layers):
        queries, keys, values = dense(x, p, f"layers.{n}.qkv").split(WIDTH, dim=-1)
        context = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weight = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(size)
            weight = weight.masked_fill(absent[:, None, :], -math.inf).exp()
            context.append(weight / weight.sum(dim=-1, keepdim=True) @ values[..., part])
        x = norm(x + dense(torch.cat(context, dim=-1), p, f"layers.{n}.attention_out"), p, f"layers.{n}.attention_norm")
        inner = gelu(dense(x, p, f"layers.{n}.expand"))
        x = norm(x + dense(inner, p, f"layers.{n}.contract"), p, f"layers.{n}.norm")
    return [x[pair, :length] for pair, length in enumerate(lengths)]


def gradients(loss: Tensor, model: UniterModel) -> dict[str, Tensor | None]:
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)))


def assert_same_gradients(ours: dict, theirs: dict, atol: float) -> int:
    """None and zero are the same; how many parameters have a gradient."""
    reached = 0
    for name, gradient in ours.items():
        other = theirs[name]
        gradient = torch.zeros(()) if gradient is None else gradient
        other = torch.zeros(()) if other is None else other
        assert torch.allclose(gradient, other.to(gradient.dtype), atol=atol, rtol=0), name
        reached += bool((other != 0).any())
    return reached


def assert_tied(model: UniterModel) -> None:
    assert model.mlm.decoder.weight is model.text_embedding.word.weight
    assert model.correct.decoder.weight is model.text_embedding.word.weight
