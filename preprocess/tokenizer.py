"""The tokenizer of a corpus: the one that was named, or a WordPiece one trained on the captions.

Training is done here, not by `tokenizers`: its WordPiece trainer walks a hash map and gives another vocabulary in every
process, and a resumed run has to end with the same bytes.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tagsds.data.wordpiece import SPECIAL, build_tokenizer, wordpiece_tokenizer
from tagsds.errors import UserError

PREFIX = "##"


def train_vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """WordPiece vocabulary of at most `size` pieces: special tokens, characters, then merges by pair count.

    Ties go to the pair that sorts first, so the result depends on the texts alone.
    """
    counts = Counter(word for text in texts for word in _words(text))
    pieces = {word: [word[0], *(PREFIX + c for c in word[1:])] for word in sorted(counts)}
    vocabulary = dict.fromkeys(SPECIAL.values())
    vocabulary.update(dict.fromkeys(sorted({piece for parts in pieces.values() for piece in parts})))
    pairs: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)
    for word, parts in pieces.items():
        for pair in itertools.pairwise(parts):
            pairs[pair] += counts[word]
            holders[pair].add(word)
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    while len(vocabulary) < size and queue:
        count, best = heapq.heappop(queue)
        if pairs[best] != -count or count == 0:  # an entry that a later merge has made stale
            continue
        merged = best[0] + best[1].removeprefix(PREFIX)
        vocabulary[merged] = None
        changed: set[tuple[str, str]] = set()
        for word in holders.pop(best):
            for pair in zip(pieces[word], pieces[word][1:]):
                pairs[pair] -= counts[word]
                changed.add(pair)
            pieces[word] = _merge(pieces[word], best, merged)
            for pair in zip(pieces[word], pieces[word][1:]):
                pairs[pair] += counts[word]
                holders[pair].add(word)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(queue, (-pairs[pair], pair))
    return list(vocabulary)


def _merge(parts: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    """Replace every occurrence of the pair, left to right."""
    out: list[str] = []
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            out.append(merged)
            index += 2
        else:
            out.append(parts[index])
            index += 1
    return out


def _words(text: str) -> list[str]:
    """What BERT's normaliser and pre-tokeniser make of a text."""
    return [word for word, _ in _SPLIT.pre_tokenize_str(_NORMAL.normalize_str(text))]


_NORMAL = normalizers.BertNormalizer(lowercase=True)
_SPLIT = pre_tokenizers.BertPreTokenizer()


def get_tokenizer(name: str | None, texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Load `name`, or train on `texts` where it is None."""
    if name is not None:
        return wordpiece_tokenizer(name)
    vocabulary = train_vocabulary(texts, vocab_size)
    if len(vocabulary) > vocab_size:
        raise UserError(
            f"--vocab-size {vocab_size} is less than the {len(vocabulary)} characters of the captions need; raise it."
        )
    return build_tokenizer(vocabulary)
