"""Word vectors from a text file as the first embeddings of word pieces (`model.word_vectors`), for an encoder that is trained from
scratch on few captions: which words mean nearly the same stands in vectors that were learnt from more text.

The file has a word and its numbers on each line, parted by blanks, in UTF-8: GloVe's `glove.6B.100d.txt` and the like (Pennington
et al., EMNLP 2014). A first line of two numbers, as word2vec and fastText write it, is passed over.

Shapes: V = word pieces, H = width of the encoder, D = width of the file's vectors, N = pieces found in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tagsds.errors import UserError, first_line

FEWEST = 0.1  # share of a vocabulary's pieces; a file that has fewer is not of its language


def read_word_vectors(path: Path, words: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Of the words that stand in the file: their numbers int64 [N], in the file's order, and their vectors float64 [N, D]. The
    first of two lines of one word counts. UserError, with the line, for vectors of two widths or what is no number."""
    numbers, rows = [], []
    taken: set[int] = set()
    width = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for at, line in enumerate(lines, start=1):
                word, *values = line.rstrip().split(" ")
                if at == 1 and len(values) == 1:
                    continue  # how many words, how wide
                width = width or len(values)
                if len(values) != width or not width:
                    raise UserError(
                        f"model.word_vectors: {path}, line {at}, has {len(values)} numbers and the lines above {width}; give a "
                        "file with one word and its numbers on each line."
                    )
                number = words.get(word)
                if number is not None and number not in taken:
                    taken.add(number)
                    numbers.append(number)
                    rows.append([float(value) for value in values])
    except (OSError, ValueError) as error:  # bytes that are not UTF-8 among them
        said = f"{path} cannot be read as lines of a word and its numbers ({first_line(error)})"
        raise UserError(f"model.word_vectors: {said}; give another file.") from error
    return torch.tensor(numbers, dtype=torch.int64), torch.tensor(rows, dtype=torch.float64).reshape(len(rows), width)


def fit_width(vectors: Tensor, width: int, std: float) -> Tensor:
    """float64 [N, D] -> float32 [N, width]: centred, on their `width` main axes (all where the encoder is wider), from there turned
    at random, so that each coordinate carries as much, and scaled to the standard deviation `std` of fresh embeddings. Scalar
    products keep their proportions, but for what the axes that are left out held. Draws from torch's generator."""
    centred = vectors - vectors.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # the main ones last
    kept = centred @ axes[:, -width:]
    turn, _ = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
    turned = kept @ turn[: kept.shape[1]]
    return (turned * (std / turned.std().clamp(min=1e-12))).float()


def put_word_vectors(embedding: Tensor, path: Path, pieces: Mapping[str, int], std: float) -> int:
    """Overwrite the rows of `embedding`, float [V, H], whose piece is a word of the file, and return their number N. Pieces within
    words and pieces that the file does not have keep what was drawn. UserError where hardly any is found."""
    numbers, vectors = read_word_vectors(path, pieces)
    if len(numbers) < max(2, FEWEST * len(pieces)):
        raise UserError(
            f"model.word_vectors: {path} has {len(numbers)} of the tokenizer's {len(pieces)} pieces; give vectors of the captions' "
            "language, in lower case for an uncased tokenizer."
        )
    with torch.no_grad():
        embedding[numbers] = fit_width(vectors, embedding.shape[1], std).to(embedding)
    return len(numbers)
