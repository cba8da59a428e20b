"""VSRN, visual semantic reasoning (arXiv 1909.02701): one vector an image, one a caption.

Shapes: I images with R regions in all, E joint width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers.captioner import Captioner
from tagsds.models.matchers.config import VsrnConfig
from tagsds.models.matchers.matcher import Encoded, Matcher, initialise
from tagsds.models.matchers.text import TextEncoder, last_state, packed_rows, unit


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over real rows only; a batch of one row, which has no variance, takes the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) < 2:
            mean, var = self.running_mean, self.running_var
            return nn.functional.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(input)


class GraphLayer(nn.Module):
    """v_i + BN(W sum_j a_ij g(v_j)), a_ij = theta(v_i) phi(v_j) / N within an image of N regions. BN begins at zero, so that the
    layer begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = RowNorm(width)

    def forward(self, v: Tensor, lengths: Tensor) -> Tensor:
        """[R, E], lengths int64 [I] -> [R, E]."""
        theta, phi, g = (Ragged(part(v), lengths).pad(0.0) for part in (self.theta, self.phi, self.g))
        affinity = theta @ phi.mT / lengths[:, None, None]
        mixed = Ragged.from_padded(affinity @ g, lengths).values
        return v + self.norm(self.out(mixed))


class VSRN(Matcher):
    """`similarity` is the cosine of `embed`'s vectors."""

    config_class = VsrnConfig

    def __init__(self, config: VsrnConfig) -> None:
        super().__init__(config)
        width = config.embed_size
        self.image = nn.Linear(config.region_dim, width)
        self.graph = nn.ModuleList(GraphLayer(width) for _ in range(config.graph_layers))
        self.image_rnn = nn.GRU(width, width, batch_first=True)
        self.image_norm = RowNorm(width) if config.image_norm else None
        self.text = TextEncoder(config, bidirectional=False)
        self.captioner = Captioner(config) if config.caption_hidden else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)
        if isinstance(module, GraphLayer):
            nn.init.zeros_(module.norm.weight)
            nn.init.zeros_(module.norm.bias)

    def encode_images(self, images: Images) -> Encoded:
        v = self.image(images.regions.values.to(self.image.weight.dtype))
        for layer in self.graph:
            v = layer(v, images.lengths)
        states = Ragged(unit(v).to(v.dtype), images.lengths)
        whole = last_state(self.image_rnn, packed_rows(states))
        if self.image_norm is not None:
            whole = self.image_norm(whole)
        return Encoded(unit(whole)[:, None], torch.ones_like(images.lengths), states)

    def encode_captions(self, captions: Ragged) -> Encoded:
        return Encoded(unit(self.text.last(captions))[:, None], torch.ones_like(captions.lengths))

    def compare(self, images: Encoded, captions: Encoded) -> Tensor:
        return images.vectors[:, 0] @ captions.vectors[:, 0].T

    def compare_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        return (images.vectors[:, 0] * captions.vectors[:, 0]).sum(dim=-1)

    def embed(self, images: Images | None = None, captions: Ragged | None = None) -> Tensor:
        """Unit vectors float32 [N, E] of either side."""
        if (images is None) == (captions is None):
            raise ValueError("embed takes images or captions, one of them")
        side = self.encode_images(images) if images is not None else self.encode_captions(captions)  # type: ignore[arg-type]
        return side.vectors[:, 0]

    def captioning_loss(self, images: Encoded, captions: Ragged) -> Tensor:
        """Row p of `captions` decoded from row p of `images.states`: see `Captioner`."""
        assert self.captioner is not None and images.states is not None
        return self.captioner(images.states, captions)
