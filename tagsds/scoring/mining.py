"""The most similar captions of images and images of captions in a bank, by a matcher with its current weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tagsds.data.bank import Bank
from tagsds.kernels.select import Highest, compiled_on
from tagsds.models.matchers import Encoded, Matcher
from tagsds.scoring.scorer import without_dropout
from tagsds.scoring.search import Live, Store, bytes_of_tops, search

QUERIES = 4096  # of a block; with more of them the keys are read less often
KEYS, KEYS_SORTED = 2048, 16384  # of a block where scores are compared with a bar, and where torch.topk looks at all of them
MOST_TOPS = 4.0  # GiB of running tops that a process may hold, above which the corpus is searched in each direction by itself


def search_bank(
    model: Matcher, bank: Bank, captions_per_image: int, images_per_caption: int, images: Tensor, captions: Tensor,
    block: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The rows of `images` (int64 [n], ascending) and of `captions` (int64 [m], ascending) with its current weights: int32
    [n, Kc] and [m, Ki] on the CPU. What re-mining in training calls; each rank gives its share of the rows. One process, which
    gives all of them, compares each pair once for both directions."""
    block = block or (QUERIES, keys_of_block(bank.device))
    with torch.no_grad(), without_dropout(model):
        stores = Live(model, bank, True), Live(model, bank, False)
        tops = bytes_of_tops(bank.num_captions, images_per_caption, bank.device)
        if (len(images), len(captions)) == (bank.num_images, bank.num_captions) and tops <= MOST_TOPS * 2**30:
            columns = Highest.of(bank.num_captions, images_per_caption, bank.device)
            parts = [
                search(model.compare, *stores, start, min(start + block[0], len(images)), captions_per_image, block[1], columns)
                for start in range(0, len(images), block[0])
            ]
            return torch.from_numpy(np.concatenate(parts)), columns.settled()[1].cpu().contiguous()
        out = []
        for of_images, rows, k in ((True, images, captions_per_image), (False, captions, images_per_caption)):
            keys = stores[1] if of_images else stores[0]
            found = [rows_of_queries(model, bank, of_images, part, keys, k, block[1]) for part in rows.split(block[0])]
            out.append(torch.cat(found) if found else torch.empty(0, k, dtype=torch.int32))
    return out[0], out[1]


def rows_of_queries(model: Matcher, bank: Bank, of_images: bool, rows: Tensor, keys: Store, k: int, block_keys: int) -> Tensor:
    """Search for queries that are not neighbours: a share of the rows."""

    class Queries:
        owners = rows if of_images else bank.image_of_caption[rows]

        def block(self, start: int, stop: int):
            if of_images:
                return model.encode_images(bank.image_table(rows[start:stop]))
            return model.encode_captions(bank.text_table(rows[start:stop]))

    return torch.from_numpy(search(comparison(model, of_images), Queries(), keys, 0, len(rows), k, block_keys))


def keys_of_block(device: torch.device) -> int:
    """Keys of a block, by how the highest are found on the device."""
    return KEYS if compiled_on(device) else KEYS_SORTED


def comparison(model: Matcher, queries_are_images: bool) -> Callable[[Encoded, Encoded], Tensor]:
    """compare(queries, keys) -> [q, k] of a matcher, whichever side asks."""
    if queries_are_images:
        return model.compare
    return lambda captions, images: model.compare(images, captions).T
