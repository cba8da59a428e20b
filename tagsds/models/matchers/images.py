"""Images for the matchers: projection of the region features, and VSRN's reasoning over them.

Shapes: I images, R regions of all images one after another, N regions of the largest image, D feature width, E joint width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.data.pairs import Images
from tagsds.data.ragged import Ragged
from tagsds.models.matchers.attention import unit
from tagsds.models.matchers.config import MatcherConfig


class RegionProjection(nn.Linear):
    """Features of any precision [R, D] -> [R, E]; begins Xavier-uniform with zero bias."""

    def __init__(self, config: MatcherConfig) -> None:
        super().__init__(config.region_dim, config.embed_size)

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, images: Images) -> Ragged:  # type: ignore[override]
        regions = images.regions
        return Ragged(super().forward(regions.values.to(self.weight.dtype)), regions.lengths)


def unit_columns(regions: Ragged) -> Ragged:
    """Each feature divided by its length over the regions of its image (not each region by its own): [R, E] -> [R, E]."""
    columns = unit(regions.pad(0).mT).mT.to(regions.values.dtype)
    return Ragged.from_padded(columns, regions.lengths)


class RowNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of [R, E]. A single row has no variance: training on it uses the running statistics, and leaves
    them as they are.

    start   value with which its weight begins; 0 switches off what stands before it
    """

    def __init__(self, width: int, start: float = 1.0) -> None:
        self.start = start
        super().__init__(width)

    def reset_parameters(self) -> None:
        # by nn.init throughout (super's resets its statistics in place), so that from_pretrained can guard what it has loaded
        nn.init.constant_(self.weight, self.start)
        nn.init.zeros_(self.bias)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)
        nn.init.zeros_(self.num_batches_tracked)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class RegionGraph(nn.Module):
    """One residual graph convolution over the regions of an image (VSRN, arXiv 1909.02701, section 3.1).

        v_i + Norm(W sum_j (theta v_i . phi v_j) / N g v_j),   N = the image's own number of regions

    Norm begins at 0 (weight and bias), so the layer begins as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.theta = nn.Linear(width, width)
        self.phi = nn.Linear(width, width)
        self.g = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = RowNorm(width, start=0.0)

    def forward(self, regions: Ragged) -> Ragged:
        x, lengths = regions.values, regions.lengths
        theta, phi, g = (Ragged(layer(x), lengths).pad(0) for layer in (self.theta, self.phi, self.g))  # [I, N, E]
        affinity = theta @ phi.mT / lengths[:, None, None]  # zero where either is padding
        mixed = Ragged.from_padded(affinity.to(g.dtype) @ g, lengths).values
        return Ragged(x + self.norm(self.out(mixed)), lengths)
