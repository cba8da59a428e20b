"""The encoder's masked-word likelihood of a sentence, with an image behind it or by the words alone.

By the words alone the sequence is [CLS] pieces [SEP] with no region behind it. The encoder was trained with regions, so this is
what it knows of language without being asked to see; weights that began from a text model know most. With an image it is how
readily the encoder would write the sentence of that image.

Shapes: T texts, G maskings, h = hidden pieces of all maskings, V = word pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tagsds.data.pairs import Images, Pairs, select_images
from tagsds.data.ragged import Ragged
from tagsds.data.vocabulary import Vocabulary
from tagsds.malloc import give_back_freed_memory
from tagsds.models.uniter import Layout, UniterModel
from tagsds.scoring.scorer import without_dropout

TOKENS = 8192  # of a forward


def no_regions(model: UniterModel, device: torch.device) -> Images:
    """A table of one image without a region."""
    values = torch.empty(0, model.config.region_dim, device=device)
    return Images(Ragged(values, torch.zeros(1, dtype=torch.int64, device=device)), torch.empty(0, 7, device=device))


@torch.no_grad()
def hidden_words(
    model: UniterModel, texts: Ragged, hidden: Sequence[tuple[int, Sequence[int]]], vocab: Vocabulary,
    images: Images | None = None, image_of_text: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Each masking hides some pieces of a text behind [MASK] and asks for them.

    texts           int64 rows with [CLS] and [SEP]
    hidden          G maskings: (row of `texts`, positions in that row)
    images          a table, and image_of_text int64 [T] its row behind each text; None: no text has a region behind it
    returns         log probability of the piece that was there, float32 [h], and the likeliest piece, int64 [h]; masking by masking
    """
    device = texts.values.device
    if images is None or image_of_text is None:
        images, image_of_text = no_regions(model, device), torch.zeros(len(texts), dtype=torch.int64, device=device)
    chances, best = [torch.empty(0, device=device)], [torch.empty(0, dtype=torch.int64, device=device)]
    lengths = (texts.lengths + images.lengths[image_of_text]).tolist()
    start = 0
    with without_dropout(model):
        while start < len(hidden):
            stop, taken = start, 0
            while stop < len(hidden) and (stop == start or taken + lengths[hidden[stop][0]] <= TOKENS):
                taken += lengths[hidden[stop][0]]
                stop += 1
            chunk = hidden[start:stop]
            rows = torch.tensor([row for row, _ in chunk], device=device)
            table = texts.select(rows)
            counts = torch.tensor([len(positions) for _, positions in chunk], device=device)
            places = torch.tensor([p for _, positions in chunk for p in positions], dtype=torch.int64, device=device)
            at = torch.repeat_interleave(table.offsets[:-1], counts) + places
            originals = table.values[at]
            masked = Ragged(table.values.index_fill(0, at, vocab.mask), table.lengths)
            behind, image_of_pair = torch.unique(image_of_text[rows], return_inverse=True)
            pairs = Pairs(masked, select_images(images, behind), torch.arange(len(chunk), device=device), image_of_pair)
            asked = torch.repeat_interleave(Layout.of(pairs).starts[:-1], counts) + places
            keep, row = torch.unique(asked, return_inverse=True)
            logits = model.mlm(model(pairs, keep)).float()[row]
            chances.append(logits.gather(1, originals[:, None]).squeeze(1) - logits.logsumexp(dim=-1))
            best.append(logits.argmax(dim=-1))
            start = stop
            give_back_freed_memory()
    return torch.cat(chances), torch.cat(best)


def pseudo_likelihood(
    model: UniterModel, texts: Ragged, vocab: Vocabulary, images: Images | None = None, image_of_text: Tensor | None = None
) -> Tensor:
    """Sum over the pieces of log p(piece | the other pieces, the image), each hidden by itself: float32 [T] (Salazar et al., ACL
    2020, arXiv 1910.14659). Images as in `hidden_words`."""
    hidden = [(row, (position,)) for row, length in enumerate(texts.lengths.tolist()) for position in range(1, length - 1)]
    chances, _ = hidden_words(model, texts, hidden, vocab, images, image_of_text)
    owner = torch.tensor([row for row, _ in hidden], dtype=torch.int64, device=chances.device)
    return torch.zeros(len(texts), device=chances.device).index_add_(0, owner, chances)
