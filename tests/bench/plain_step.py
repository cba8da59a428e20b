"""The same TAGS-DC step, written plainly: one caption a batch, padded to the longest, nothing shared between pairs.

It computes the losses of `tagsds.objectives.retrieval` from the same draws and the same weights, the way the released
code of the paper is built: image features are projected again for every pair, the last layer is computed for every
position, the vocabulary for every word, the true pair is forwarded once for each ranking loss, repeated and filtered
candidates are scored before they are dropped, and filtering is a Python loop. Attention is PyTorch's fused one (`fused`), or
written out with its probabilities in memory (`written_out`), as the released code has it. Dropout is the model's, in the batches
with a gradient alone, as in the package.

Shapes: P = pairs of a batch, W = words of the longest text, R = regions of the largest image, L = longest sequence, A = heads,
D = width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tagsds.config import RunConfig
from tagsds.data.bank import Bank
from tagsds.data.pairs import geometry_of
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.draw import Draw
from tagsds.models import UniterModel
from tagsds.negatives.random import draw_captions, draw_images
from tagsds.negatives.writer import mask_captions

# --- the encoder, padded ---------------------------------------------------------------------------------------------

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V on [P, A, L, D], mask bool [P, 1, 1, L], by SDPA."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """The same, step by step; the probabilities [P, A, L, L] lie in memory."""
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    probability = torch.softmax(scores + (~mask).to(scores.dtype) * -10000.0, dim=-1)
    return F.dropout(probability, dropout, training=dropout > 0) @ value


def pad_texts(texts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    return ids.to(device), torch.tensor([len(text) for text in texts]).to(device)


def pad_images(bank: Bank, images: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Features [P, R, D], box vectors [P, R, 7] and lengths [P], each image copied once for each pair."""
    index = torch.tensor(images, device=bank.device)
    rows = bank.region_rows(index)
    feature = Ragged(bank.regions.values[rows.values].float(), rows.lengths).pad(0.0)
    return feature, Ragged(geometry_of(bank.boxes[rows.values]), rows.lengths).pad(0.0), rows.lengths


def encode_padded(
    model: UniterModel, texts: list[list[int]], bank: Bank, images: list[int], pad: int, attention: Attention
) -> Tensor:
    """States of every position, [P, L, H]; words stand first, regions directly behind them."""
    ids, text_lengths = pad_texts(texts, pad, bank.device)
    feature, place, image_lengths = pad_images(bank, images)
    t, i = model.text_embedding, model.image_embedding
    feature, place = feature.to(i.feature.weight.dtype), place.to(i.feature.weight.dtype)
    words = norm(t.norm, t.word(ids) + t.position.weight[: ids.shape[1]] + t.token_type.weight[0])
    embedded = norm(i.feature_norm, linear(i.feature, feature)) + norm(i.box_norm, linear(i.box, place))
    regions = norm(i.norm, embedded + t.token_type.weight[1])

    both = dropped(torch.cat([words, regions], dim=1), model.config.hidden_dropout_prob)
    lengths = text_lengths + image_lengths
    column = torch.arange(int(lengths.max()), device=bank.device).expand(len(texts), -1)
    shift = torch.where(column < text_lengths[:, None], 0, ids.shape[1] - text_lengths[:, None])
    gather = (column + shift).clamp(max=both.shape[1] - 1)  # close the gap between short texts and their regions
    x = both.gather(1, gather[:, :, None].expand(-1, -1, both.shape[2]))
    return run_layers(model, x, (column < lengths[:, None])[:, None, None, :], attention)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """By PyTorch's own product, whatever kernel the package's layer takes."""
    return F.linear(x, layer.weight, layer.bias)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def dropped(x: Tensor, p: float) -> Tensor:
    return F.dropout(x, p, training=torch.is_grad_enabled()) if p else x


def run_layers(model: UniterModel, x: Tensor, mask: Tensor, attention: Attention) -> Tensor:
    """All layers at all positions: x [P, L, H], mask bool [P, 1, 1, L] -> [P, L, H]."""
    p = model.config.hidden_dropout_prob
    inside = model.config.attention_probs_dropout_prob if torch.is_grad_enabled() else 0.0
    for layer in model.layers:
        qkv = linear(layer.qkv, x).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in qkv)
        context = attention(query, key, value, mask, inside).transpose(1, 2).flatten(2)
        x = norm(layer.attention_norm, x + dropped(linear(layer.attention_out, context), p))
        x = norm(layer.norm, x + dropped(linear(layer.contract, F.gelu(linear(layer.expand, x))), p))
    return x


def rank(model: UniterModel, states: Tensor) -> Tensor:
    """Ranking logits, [P]."""
    return model.rank(torch.tanh(linear(model.pooler.dense, states[:, 0]))).squeeze(-1).float()


# --- one step --------------------------------------------------------------------------------------------------------


def plain_step(
    model: UniterModel,
    bank: Bank,
    captions: Tensor,
    draw: Draw,
    config: RunConfig,
    vocab: Vocabulary,
    attention: Attention = fused,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(total, {term: value}) of one micro-batch of TAGS-DC.

    On a CPU the refills are those of the package too, for they are drawn row by row; on a GPU each batch draws its own.
    """
    device = bank.device
    encode = partial(encode_padded, attention=attention)
    own = [int(bank.image_of_caption[c]) for c in captions]
    all_own = torch.tensor(own, device=device)
    count, keep, margin = config.negatives.count, config.negatives.keep, config.loss.margin
    random_images = draw_images(bank, all_own, count, draw.generator(device, "negative images")).tolist()
    random_captions = draw_captions(bank, all_own, count, draw.generator(device, "negative captions")).tolist()
    maskings = mask_captions(bank, captions, config.synthetic, vocab, draw.generator(device, "mask"))
    refilling = draw.generator(device, "refill")
    hinges: dict[str, list[Tensor]] = {"t2i": [], "i2t": [], "syn": []}
    word_losses, corrected, told = [], [], []

    def hinge(scores: Tensor) -> Tensor:
        return torch.relu(margin + scores[1:] - scores[0]).mean()

    for b, caption in enumerate(captions.tolist()):
        text, image = bank.tokens[caption].tolist(), own[b]

        # the hardest of the random negatives, one direction after the other
        with torch.no_grad():
            mined = rank(model, encode(model, [text] * count, bank, random_images[b], vocab.pad))
            hard_images = [random_images[b][k] for k in mined.topk(min(keep, count)).indices.tolist()]
            pool = [bank.tokens[c].tolist() for c in random_captions[b]]
            mined = rank(model, encode(model, pool, bank, [image] * count, vocab.pad))
            hard_captions = [pool[k] for k in mined.topk(min(keep, count)).indices.tolist()]

        # sentences of its own
        masked = [row[: len(text)].tolist() for row in maskings.masked[b]]
        chosen = [row.nonzero().flatten().tolist() for row in maskings.chosen[b]]
        with torch.no_grad():
            states = encode(model, masked, bank, [image] * len(masked), vocab.pad)
            logits = model.mlm(states[:, : len(text)])  # [M, W, V], at every word
            candidates = refill_in_a_loop(text, chosen, logits, config, vocab, refilling)
            batch = encode(model, [c for c, _ in candidates], bank, [image] * len(candidates), vocab.pad)
            scores = rank(model, batch).tolist()
            good = filter_in_a_loop([c for c, _ in candidates], text, bank, image)
            order = sorted((n for n in range(len(candidates)) if good[n]), key=lambda n: -scores[n])[:keep]
        hard_written = [candidates[n] for n in order]

        # with gradient, a batch for each loss; the true pair leads each of them
        batch = encode(model, [text] * (1 + len(hard_images)), bank, [image, *hard_images], vocab.pad)
        hinges["t2i"].append(hinge(torch.sigmoid(rank(model, batch))))
        batch = encode(model, [text, *hard_captions], bank, [image] * (1 + len(hard_captions)), vocab.pad)
        hinges["i2t"].append(hinge(torch.sigmoid(rank(model, batch))))
        batch = encode(model, masked, bank, [image] * len(masked), vocab.pad)
        log_p = F.log_softmax(model.mlm(batch[:, : len(text)]).float(), dim=-1)
        word_losses.append(-picked(log_p, chosen, text))
        if not hard_written:
            continue
        batch = encode(model, [text, *(c for c, _ in hard_written)], bank, [image] * (1 + len(hard_written)), vocab.pad)
        hinges["syn"].append(hinge(torch.sigmoid(rank(model, batch))))
        log_is_original = F.log_softmax(model.discriminate(batch[1:, : len(text)]).float(), dim=-1)
        log_original = F.log_softmax(model.correct(batch[1:, : len(text)]).float(), dim=-1)
        sentences = torch.tensor([sentence for sentence, _ in hard_written], device=device)
        kept = sentences == torch.tensor(text, device=device)
        weight = torch.where(kept, config.loss.weight_kept, config.loss.weight_replaced)
        told.append(-(weight * log_is_original.gather(2, kept.long()[:, :, None])[:, :, 0]).flatten())
        corrected.append(-picked(log_original, [positions for _, positions in hard_written], text))

    terms = {name: torch.stack(values).mean() for name, values in hinges.items()}
    terms |= {name: torch.cat(parts).mean() for name, parts in (("mlm", word_losses), ("disc", told), ("corr", corrected))}
    return sum(getattr(config.loss, name) * term for name, term in terms.items()), terms


def picked(log_p: Tensor, positions: list[list[int]], text: list[int]) -> Tensor:
    """The entries of log_p [n, W, V] at each row's positions and the text's pieces there, row by row."""
    places = [(row, p, text[p]) for row, some in enumerate(positions) for p in some]
    return log_p[tuple(torch.tensor(places, device=log_p.device).reshape(-1, 3).T)]


def refill_in_a_loop(
    text: list[int],
    chosen: list[list[int]],
    logits: Tensor,
    config: RunConfig,
    vocab: Vocabulary,
    random: torch.Generator,
) -> list[tuple[list[int], list[int]]]:
    """(sentence, its masked positions) for every masking and refill."""
    special = {vocab.pad, vocab.unk, vocab.cls, vocab.sep, vocab.mask}
    ordinary = torch.tensor([piece for piece in range(vocab.size) if piece not in special], device=logits.device)
    out = []
    for row, positions in enumerate(chosen):
        probability = torch.softmax(logits[row, positions][:, ordinary].float() / config.synthetic.tau, dim=-1)
        drawn = ordinary[torch.multinomial(probability, config.synthetic.refills, replacement=True, generator=random)]
        for pieces in drawn.T.tolist():
            sentence = list(text)
            for position, piece in zip(positions, pieces):
                sentence[position] = piece
            out.append((sentence, positions))
    return out


def filter_in_a_loop(candidates: list[list[int]], text: list[int], bank: Bank, image: int) -> list[bool]:
    """False for a caption of the image, a repetition, and what changes only to words of the image's captions."""
    annotated = [bank.tokens[int(c)].tolist() for c in bank.captions_of_image[image]]
    known = {piece for caption in annotated for piece in caption}
    seen: set[tuple[int, ...]] = set()
    out = []
    for sentence in candidates:
        key = tuple(sentence)
        new = [piece for piece, before in zip(sentence, text) if piece != before]
        out.append(sentence not in annotated and key not in seen and any(piece not in known for piece in new))
        seen.add(key)
    return out
