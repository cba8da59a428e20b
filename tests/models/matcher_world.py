"""Small ragged inputs and models for the tests of the matchers."""

from __future__ import annotations

import torch
from torch import Tensor

from tagsds.data.pairs import Images, geometry_of
from tagsds.data.ragged import Ragged
from tagsds.models import MATCHERS
from tagsds.models.matchers import Matcher

VOCAB, REGION_DIM, WORD_SIZE, EMBED = 23, 6, 5, 8
REGIONS = [3, 1, 5, 2]  # of four images
WORDS = [4, 7, 3, 5, 2]  # of five captions, [CLS] and [SEP] among them


def images_of(lengths: list[int] = REGIONS, seed: int = 0, width: int = REGION_DIM) -> Images:
    """Features float16, as stored."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    boxes = torch.rand(total, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
    features = torch.randn(total, width, generator=generator).half()
    return Images(Ragged(features, torch.tensor(lengths)), geometry_of(boxes))


def captions_of(lengths: list[int] = WORDS, seed: int = 1, vocab: int = VOCAB) -> Ragged:
    generator = torch.Generator().manual_seed(seed)
    return Ragged(torch.randint(0, vocab, (sum(lengths),), generator=generator), torch.tensor(lengths))


def matcher_of(name: str, seed: int = 0, **changes) -> Matcher:
    """In eval mode and float64, every parameter off its initial value (BatchNorm off 0 and 1, its statistics too)."""
    config_class, model_class = MATCHERS[name].config, MATCHERS[name].model
    sizes = dict(vocab_size=VOCAB, region_dim=REGION_DIM, word_size=WORD_SIZE, embed_size=EMBED)
    if name == "vsrn":
        sizes |= dict(graph_layers=2, caption_hidden=7)
    torch.manual_seed(seed)
    model = model_class(config_class(**(sizes | changes))).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
            elif key.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
    return model


def gradients(model: Matcher, loss: Tensor) -> dict[str, Tensor]:
    """d loss / d parameter by name; zeros where the parameter takes no part."""
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), grads)}
