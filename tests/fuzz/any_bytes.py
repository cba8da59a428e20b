"""Damage to the bytes of a file of any format: bits, stretches, encodings, compression."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random

Damage = Callable[[Random, bytes, Sequence[bytes]], bytes | None]
"""(random numbers, the file, other formats' files) -> the damaged file; None: the file is removed"""

BOMB_BYTES = 3 << 30  # that a compressed bomb unpacks to


def place(rng: Random, data: bytes) -> tuple[int, int]:
    """A stretch of the file, seldom long."""
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + int(1.5 ** rng.uniform(0, 25)))


def flipped_bits(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _n in range(rng.choice((1, 1, 1, 2, 8, 64))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def changed_bytes(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _n in range(rng.choice((1, 1, 4, 32))):
        if out:
            out[rng.randrange(len(out))] = rng.choice((0, 0xFF, 0x7F, 0x80, 0x20, 0x30, 0x39, rng.randrange(256)))
    return bytes(out)


def cut_end(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def cut_start(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def cut_middle(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = place(rng, data)
    return data[:begin] + data[end:]


def zeroed(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = place(rng, data)
    return data[:begin] + bytes(end - begin) + data[end:]


def noise(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = place(rng, data)
    return data[:begin] + rng.randbytes(end - begin) + data[end:]


def doubled(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    begin, end = place(rng, data)
    return data[:end] + data[begin:end] + data[end:]


def swapped_chunks(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    size = rng.choice((1, 16, 512, 4096))
    chunks = [data[i : i + size] for i in range(0, len(data), size)]
    if len(chunks) > 1:
        a, b = rng.sample(range(len(chunks)), 2)
        chunks[a], chunks[b] = chunks[b], chunks[a]
    return b"".join(chunks)


def not_utf8(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\xf8\x88")) + data[at:]


def other_encoding(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return data.decode("latin1").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")), "replace")


def empty(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return b""


def removed(rng: Random, data: bytes, _: Sequence[bytes]) -> None:
    return None


def other_format(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return rng.choice(others)


def zipped(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return gzip.compress(data, mtime=0)


@lru_cache(1)
def gzip_bomb(rng: Random | None = None, data: bytes = b"", _: Sequence[bytes] = ()) -> bytes:
    """BOMB_BYTES of zeros in 3 MiB: one compressed block after another."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + block * (BOMB_BYTES >> 24) + b"\x03\x00" + bytes(8)


def bomb(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    return gzip_bomb()


ANY: tuple[Damage, ...] = (
    flipped_bits, flipped_bits, flipped_bits, changed_bytes, changed_bytes, cut_end, cut_end, cut_start, cut_middle, zeroed, noise,
    doubled, swapped_chunks, not_utf8, other_encoding, empty, removed, other_format, zipped,
)  # fmt: skip
