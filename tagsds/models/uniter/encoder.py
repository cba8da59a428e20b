"""The shared encoder-generator: one BERT over word pieces and image regions (UNITER, arXiv 1909.11740), on packed pairs.

Shapes: T = word pieces of the text table, R = regions of the image table, P = pairs, N = tokens of all pairs,
K = tokens kept, H = hidden width, A = heads, D = width of a head.

A pair's sequence is [CLS] w_1 .. w_n [SEP] r_1 .. r_m. Nothing is padded: a linear layer sees [N, H].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged, offsets_of, positions_of
from tagsds.kernels import choice
from tagsds.kernels.add_norm import AddNorm
from tagsds.kernels.attention import Sequences, self_attention
from tagsds.kernels.linear import FeatureLinear, Linear, QkvLinear
from tagsds.models.uniter.config import UniterConfig
from tagsds.models.uniter.heads import Pooler, RankHead, RegionClassHead, RegionFeatureHead, WordHead
from tagsds.models.uniter.probe import QUERIES, Probe, ProbeLinear


@dataclass
class Layout:
    """Where the pairs' tokens stand in the packed stream: `starts` int64 [P + 1], `text_lengths`, `image_lengths` int64 [P]."""

    starts: Tensor
    text_lengths: Tensor
    image_lengths: Tensor

    @staticmethod
    def of(pairs: Pairs) -> Layout:
        text = pairs.texts.lengths[pairs.text_of_pair]
        image = pairs.images.lengths[pairs.image_of_pair]
        return Layout(offsets_of(text + image), text, image)

    def cls(self, pairs: Tensor | slice = slice(None)) -> Tensor:
        """Stream positions of [CLS] of the given pairs."""
        return self.starts[:-1][pairs]

    def texts(self, pairs: Tensor) -> Tensor:
        """Stream positions of the word pieces from [CLS] to [SEP], pair by pair."""
        return positions_of(self.starts[pairs], self.text_lengths[pairs])

    def words(self, pairs: Tensor) -> Tensor:
        """Stream positions of the word pieces between [CLS] and [SEP], pair by pair."""
        return positions_of(self.starts[pairs] + 1, self.text_lengths[pairs] - 2)

    def regions(self, pairs: Tensor) -> Tensor:
        """Stream positions of the regions, pair by pair."""
        return positions_of(self.starts[pairs] + self.text_lengths[pairs], self.image_lengths[pairs])


class TextEmbedding(nn.Module):
    """Word + position + token type 0, LayerNorm, dropout: Ragged pieces -> [T, H]."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(2, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, texts: Ragged) -> tuple[Tensor, Tensor]:
        """Also returns the embedding of token type 1, [H], which the regions add."""
        position = positions_of(torch.zeros_like(texts.lengths), texts.lengths)
        types = self.token_type(torch.arange(2, device=texts.values.device))
        x = self.word(texts.values) + self.position(position) + types[0]
        return self.dropout(self.norm(x)), types[1]


class ImageEmbedding(nn.Module):
    """LN(W_f f) + LN(W_b b) + token type 1, LayerNorm, dropout: image table -> [R, H]. Regions carry no position."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.feature = FeatureLinear(config.region_dim, width)
        self.feature_norm = nn.LayerNorm(width, eps=eps)
        self.box = nn.Linear(7, width)
        self.box_norm = nn.LayerNorm(width, eps=eps)
        self.mask = nn.Parameter(torch.zeros(config.region_dim))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, images: Images, token_type: Tensor) -> Tensor:
        feature = images.regions.values
        if images.masked is not None:  # a hidden feature is zero plus the learnt mask embedding
            feature = torch.where(images.masked[:, None], self.mask, feature.to(self.feature.weight.dtype))
        else:
            token_type = token_type + 0 * self.mask.sum()  # every parameter takes part in every backward (ZeRO-3)
        box = images.geometry.to(self.box.weight.dtype)
        x = self.feature_norm(self.feature(feature)) + self.box_norm(self.box(box)) + token_type
        return self.dropout(self.norm(x))


class Layer(nn.Module):
    """One post-LN transformer layer on a packed stream."""

    def __init__(self, config: UniterConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads = config.num_attention_heads
        self.qkv = QkvLinear(width, 3 * width)
        self.attention_out = Linear(width, width)
        self.attention_norm = AddNorm(width, eps=eps)
        self.expand = Linear(width, config.intermediate_size)
        self.contract = Linear(config.intermediate_size, width)
        self.norm = AddNorm(width, eps=eps)
        self.dropout = config.hidden_dropout_prob
        self.attention_dropout = config.attention_probs_dropout_prob

    def forward(
        self, x: Tensor, qkv: Tensor | None, sequences: Sequences, keep: Tensor | None, kept: Sequences
    ) -> Tensor:
        """x [N, H] -> [K, H].

        qkv   [N, 3H], self.qkv(x) where it is known already (first layer: computed once per table row), else None.
        keep  int64 [K] or None: stream positions whose output is wanted (K = N without it); the others serve as keys and
              values only. `kept` divides the K among the sequences.
        """
        hidden, of_attention = (self.dropout, self.attention_dropout) if self.training else (0.0, 0.0)
        width, query = x.shape[1], None
        if keep is None:
            packed = self.qkv(x) if qkv is None else qkv
        elif qkv is None:
            query, packed = self.qkv(x, keep)
        else:
            query, packed = qkv[:, :width].index_select(0, keep), qkv[:, width:]
        context = self_attention(packed, query, self.heads, sequences, kept, of_attention)
        if keep is not None:
            x = x.index_select(0, keep)
        x = self.attention_norm(self.attention_out(context), x, hidden)
        return self.norm(self.contract(self.expand(x, gelu=True)), x, hidden)


@dataclass
class Table:
    """What does not depend on the pairing, one row a word piece or region: `x` [T + R, H] embeddings, `qkv` [T + R, 3H] their
    projection in the first layer; text rows first, `image_start` = T."""

    x: Tensor
    qkv: Tensor
    image_start: int


@dataclass(frozen=True)
class Extent:
    """Of a packed stream: its tokens, and tokens of the longest and the shortest pair, known on the host."""

    tokens: int
    longest: int
    shortest: int


class UniterModel(PreTrainedModel):
    """Encoder and all heads. `forward` gives states; heads are modules of their own, called by who needs them.

    recomputes_layers   where a gradient is wanted, keep only what enters each layer, and run the layer again in backward
                        (activation checkpointing; Chen et al. 2016, arXiv 1604.06174). The random state of the first run is put
                        back for the second: both draw the same dropout, and the numbers do not change. It belongs to the run and
                        is not saved with the model.
    """

    config_class = UniterConfig
    base_model_prefix = "uniter"
    # what it is, for who scores with it: tagsds.scoring.protocol.RetrievalModel
    kind: ClassVar[str] = "the pair encoder"
    scored_by: ClassVar[str] = "pairs"
    score_unit: ClassVar[str] = "ranking logit"
    averages_sigmoids: ClassVar[bool] = True
    vectors: ClassVar[None] = None  # a pair goes through the encoder together
    _tied_weights_keys = {  # noqa: RUF012  (transformers' own convention)
        "mlm.decoder.weight": "text_embedding.word.weight",
        "correct.decoder.weight": "text_embedding.word.weight",
    }

    def __init__(self, config: UniterConfig) -> None:
        super().__init__(config)
        self.recomputes_layers = False
        self.text_embedding = TextEmbedding(config)
        self.image_embedding = ImageEmbedding(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Pooler(config)
        self.itm = nn.Linear(config.hidden_size, 2)
        self.rank = RankHead(config)
        self.mlm = WordHead(config)
        self.discriminate = nn.Linear(config.hidden_size, 2)
        self.correct = WordHead(config)
        self.region_feature = RegionFeatureHead(config)
        self.region_class = RegionClassHead(config)
        if config.probe_queries:
            self.probe = Probe(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As inherited; a folder of an older `discriminate_version` is turned to the published order of the head's outputs."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.discriminate_version == 1:
            with torch.no_grad():
                for parameter in model.discriminate.parameters():
                    parameter.copy_(parameter.flip(0))
            model.config.discriminate_version = 2
        return loaded

    def _init_weights(self, module: nn.Module) -> None:
        """BERT's initialisation: normal(0, 0.02), zero biases."""
        if isinstance(module, ProbeLinear):
            module.reset_parameters()
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, ImageEmbedding):
            nn.init.zeros_(module.mask)
        elif isinstance(module, RegionFeatureHead):
            nn.init.zeros_(module.bias)

    def embed(self, texts: Ragged, images: Images) -> Table:
        """Both tables, each row once however many pairs use it."""
        text, token_type = self.text_embedding(texts)
        x = torch.cat([text, self.image_embedding(images, token_type)])
        first = self.layers[0]
        assert isinstance(first, Layer)
        return Table(x, first.qkv(x), text.shape[0])

    def forward(
        self, pairs: Pairs, keep: Tensor | None = None, table: Table | None = None, extent: Extent | None = None
    ) -> Tensor:
        """States of the last layer, [K, H]: at the stream positions `keep` (int64 [K], ascending), or everywhere.

        Positions come from `Layout.of(pairs)`. `table` is `embed(pairs.texts, pairs.images)` where it is known already. With
        `extent`, for which `keep` holds one position of each pair, the device is never asked for a number: a GPU is given work
        without waiting for it.
        """
        if table is None:
            table = self.embed(pairs.texts, pairs.images)
        layout = Layout.of(pairs)
        text_starts = pairs.texts.offsets[pairs.text_of_pair]
        image_starts = pairs.images.regions.offsets[pairs.image_of_pair] + table.image_start
        starts = torch.stack([text_starts, image_starts], dim=1).flatten()
        lengths = torch.stack([layout.text_lengths, layout.image_lengths], dim=1).flatten()
        gather = positions_of(starts, lengths, extent.tokens if extent else None)

        if extent is None:
            sequences = Sequences.of(layout.starts.diff())
        else:
            sequences = Sequences(layout.starts.diff(), extent.longest, extent.longest == extent.shortest)
        kept = sequences
        if keep is not None:
            if extent is None:
                owner = torch.searchsorted(layout.starts, keep, right=True) - 1
                kept = Sequences.of(torch.bincount(owner, minlength=len(pairs)))
            else:
                kept = Sequences.single(len(pairs), keep.device)
        x: Tensor = table.x.index_select(0, gather)
        qkv: Tensor | None = table.qkv.index_select(0, gather)
        for layer in self.layers[:-1]:
            x, qkv = self._run(layer, x, qkv, sequences, None, sequences), None
        return self._run(self.layers[-1], x, qkv, sequences, keep, kept)

    def _run(self, layer: nn.Module, *given: Any) -> Tensor:
        """`layer(*given)`, by recomputation in backward where that is switched on and a gradient is wanted."""
        if self.recomputes_layers and torch.is_grad_enabled():
            out = checkpoint(layer, *given, use_reentrant=False)
            assert isinstance(out, Tensor)
            return out
        return layer(*given)

    def score(self, cls_states: Tensor) -> Tensor:
        """Ranking logit of [CLS] states [P, H] -> float32 [P]; s(I, T) is its sigmoid."""
        return self.rank(self.pooler(cls_states)).squeeze(-1)

    def kernels(self, device: torch.device) -> str:
        """What runs its operations on a device, in one line."""
        config, layer = self.config, self.layers[0]
        assert isinstance(layer, Layer)
        head = config.hidden_size // config.num_attention_heads
        return choice.report(device, self.text_embedding.word.weight.dtype, head, layer.attention_dropout > 0)

    def add_probe(self, seed: int) -> None:
        """Give a model without one the probe of cascade mining, begun by `seed` alone: all ranks begin alike."""
        config = self.config
        assert isinstance(config, UniterConfig)
        config.probe_queries = QUERIES
        with torch.random.fork_rng([]), torch.device(self.device):
            torch.manual_seed(seed)
            self.probe = Probe(config)

    def probe_scores(self, pairs: Pairs) -> Tensor:
        """The probe's score of each pair, float32 [P], from the embeddings of both tables; a gradient reaches the probe alone."""
        with torch.no_grad():
            text, token_type = self.text_embedding(pairs.texts)
            image = self.image_embedding(pairs.images, token_type)
        texts, images = self.probe(text, pairs.texts.lengths, image, pairs.images.lengths)
        return (texts[pairs.text_of_pair] * images[pairs.image_of_pair]).sum(dim=-1)
