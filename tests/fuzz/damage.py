"""Damage to a file's bytes: what disks, copies and editors do, and what a hostile file would. Everything follows from the given
`random.Random`, so that a case can be made again from its seed and number."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

Damage = Callable[[Random, bytes, Sequence[bytes]], bytes | None]
"""(random numbers, the file, other formats' files) -> the damaged file; None: the file is removed"""

DEEP = 100_000  # levels of a nested value
BOMB_BYTES = 3 << 30  # that a compressed bomb unpacks to


# --- any bytes ----------------------------------------------------------------------------------------------------------


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

# --- JSON ---------------------------------------------------------------------------------------------------------------

STRANGE: tuple[str, ...] = (
    "null", "true", "false", "0", "-1", "1", "1.5", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "1e308", '""', '"x"', "[]", "{}",
    "[[]]", '{"": 0}', "[null]", '"\\ud800"', '"\\u0000"', '"../../../x"', str(10**9), str(2**31), str(2**63), str(-(2**63)),
    str(10**18), "1" * 5000, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "0" + "}" * DEEP, '"' + "a" * 100_000 + '"', "[0]", '["a"]',
    "16.0", '{"stage": 2}', '"auto"', "[1, 2, 3]",
)  # fmt: skip
MARK = "\x01strange\x01"


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, one in inner for found in places_of(one, (*path, key)))]


def json_value(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another value at one place, a key removed or renamed, an element doubled, two values exchanged, or a number a little off."""
    try:
        value = json.loads(data)
    except ValueError:
        return flipped_bits(rng, data, others)
    path = rng.choice(places_of(value))
    if not path:
        return rng.choice(STRANGE).encode()
    owner = value
    for key in path[:-1]:
        owner = owner[key]
    key, how = path[-1], rng.randrange(6)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, dict):
        owner[key + rng.choice(("x", " ", "é"))] = owner.pop(key)
    elif how == 1:
        owner.insert(key, owner[key])
    elif how == 2:
        other = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        owner[key], owner[other] = owner[other], owner[key]
    elif how == 3 and isinstance(owner[key], int | float):
        old = owner[key]
        owner[key] = rng.choice((old + 1, old - 1, -old, old * 1000, old * 2**20, old / 2))
    else:
        owner[key] = MARK
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5).replace(json.dumps(MARK), rng.choice(STRANGE))
        return text.encode("utf-8", "replace")
    return json.dumps(value).encode()


def json_lines(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The same to one line of several."""
    lines = data.splitlines()
    at = rng.randrange(len(lines)) if lines else 0
    return b"\n".join([*lines[:at], json_value(rng, lines[at], others) if lines else b"", *lines[at + 1 :]]) + b"\n"


# --- YAML ---------------------------------------------------------------------------------------------------------------


def laughs(levels: int = 9, width: int = 9) -> str:
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


YAML_TEXTS = (
    laughs(), "loss: &x\n  more: *x\n", "[" * 5000, "a: " * 500, "? [1, 2]\n: 3\n", "!!python/object/apply:os.system ['true']\n",
    "seed: ${oc.env:HOME}\n", "seed: ${seed}\n", "seed: ${nothing.here}\n", "base: [1]\n", "base: recipe\n", "seed: 2001-12-14\n",
    "optimiser: 5\n", "loss:\n- 1\n", "- 1\n", "x\n", "~: 1\n", "seed: ???\n", "<<: {seed: 1}\n", "seed: 190:20:30\n",
    "seed: 0x" + "f" * 9000 + "\n", "seed: " + "9" * 5000 + "\n", "optimiser: {lr: .nan}\n", "optimiser: {lr: -.inf}\n",
    "matcher: {kind: ${x}}\n", "model: {hidden_size: 1e400}\n", "a: &a {b: 1}\nc: *a\n", "%YAML 9.9\n---\n", "--- 1\n--- 2\n",
    "description: \"\\ud800\"\n", "\t\n", "key: {" * 60 + "}" * 60 + "\n",
)  # fmt: skip


def yaml_text(rng: Random, data: bytes, _: Sequence[bytes]) -> bytes:
    """A strange text in front of, behind or in place of the file; or another value for one of its keys."""
    text = rng.choice(YAML_TEXTS).encode("utf-8", "replace")
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines)) if lines else 0
    if rng.random() < 0.5 and lines:
        key = lines[at].split(b":")[0]
        value = rng.choice((*STRANGE[:25], "*x", "&x 1", "!!binary x", "{", "'", "|", "> x", "${batch.pairs}"))
        return b"".join([*lines[:at], key + b": " + value.encode("utf-8", "replace") + b"\n", *lines[at + 1 :]])
    return rng.choice((text, data + text, text + data, b"".join(lines[:at]) + text + b"".join(lines[at:])))


# --- npy ----------------------------------------------------------------------------------------------------------------

HEADERS = (
    *(
        f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
        for descr, order, shape in (
            ("'<f2'", False, "(1000000000000, 8)"), ("'<f2'", False, "(-1, 8)"), ("'|O'", False, "(2, 8)"),
            ("'<U9'", False, "(2, 8)"),
            ("'|V0'", False, "(2, 8)"), ("'<f2'", False, "(2, 2**40)"), ("'<f2'", False, "(4294967296, 4294967296)"),
            ("[('a', '<f2', (100000, 100000))]", False, "()"), ("'<f2'", 1, "(1,)"), ("'<f2'", False, "(0, 8)"),
            ("'<f2'", False, "(True, 8)"), ("'<i4'", False, "(0, 0)"),
        )
    ),
    "(" * 150 + ")" * 150, "-" * 5000 + "1", "[]",
)  # fmt: skip


def npy_file(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another dtype, shape, order of bytes or version; values that are no numbers; headers that ask for far too much."""
    how = rng.randrange(4)
    if how == 0:
        text = rng.choice(HEADERS).encode() + b"\n"
        version = rng.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
        length = rng.choice((len(text), len(text), 0, 0xFFFF)).to_bytes(2 if version == b"\x01\x00" else 4, "little")
        return b"\x93NUMPY" + version + length + text + data[128:]
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        return flipped_bits(rng, data, others)
    with np.errstate(all="ignore"):
        if how == 1:
            array = array.astype(rng.choice(("<f8", "<f4", "<f2", ">f2", "i4", "u1", "?", "U8", "S8", "c8", "<i8", "m8[s]")))
        elif how == 2 and array.size:
            array = array.copy()
            numbers = {"i": (-2, 2, 100), "u": (0, 2, 100)}.get(array.dtype.kind, (np.nan, np.inf, -1, 2))
            array.reshape(-1)[rng.randrange(array.size)] = rng.choice(numbers)
        else:
            shapes = (array[:-1], array[:, :-1] if array.ndim > 1 else array, array.T, array.reshape(-1), array[None], array[:0],
                      np.concatenate([array, array]), np.asfortranarray(array), array.reshape(-1)[0])  # fmt: skip
            array = shapes[rng.randrange(len(shapes))]
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


# --- tar ----------------------------------------------------------------------------------------------------------------


def tar_file(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Members damaged, exchanged, left out, doubled, renamed; headers of sparse, linked or far too large members."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar if info.isreg()]  # type: ignore[union-attr]
    except Exception:
        return flipped_bits(rng, data, others)
    how, at = rng.randrange(10), rng.randrange(len(members))
    name, inner = members[at]
    if how < 5:
        found = damaged(rng, name, inner, others)
        members = [*members[:at], *([] if found is None else [(name, found)]), *members[at + 1 :]]
    elif how == 5:
        other = rng.randrange(len(members))
        members[at], members[other] = (name, members[other][1]), (members[other][0], inner)
    elif how == 6:
        members.insert(rng.randrange(len(members)), members[at])
    elif how == 7:
        new = ("x", "", "a/b." + name, "é." + name, "\udcff.json", "x" * 300 + name, name.replace(".", "", 1), ".." + name)
        members[at] = (rng.choice(new), inner)
    elif how == 8:
        return tar_header(rng, data)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=rng.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))) as tar:
        for number, (name, inner) in enumerate(members):
            info = tarfile.TarInfo(name)
            info.size = len(inner)
            if how == 9 and number == at:
                info.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE))
                info.linkname = members[0][0]
            tar.addfile(info, io.BytesIO(inner))
    return stream.getvalue()


def tar_header(rng: Random, data: bytes) -> bytes:
    """One member's header rewritten, with a checksum that fits: a size that is absurd or negative, another type."""
    starts = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not starts:
        return data[:100]
    at = rng.choice(starts)
    header = bytearray(data[at : at + 512])
    sizes = (b"77777777777\0", b"\x80" + (1 << 62).to_bytes(11, "big"), b"\xff" * 12, b"\xff" + (2**88 - 512).to_bytes(11, "big"),
             b"00000000000\0", b"-0000000001\0", b"            ", b"00000000777\0")  # fmt: skip
    if rng.random() < 0.7:
        header[124:136] = rng.choice(sizes)
    if rng.random() < 0.5:
        header[156:157] = rng.choice((b"S", b"x", b"g", b"L", b"K", b"5", b"2", b"\xff", b"D", b"M"))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


# --- safetensors, torch.save -------------------------------------------------------------------------------------------


def safetensors_file(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another header: names, shapes, dtypes, offsets, or its length."""
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or 8 + length > len(data):
        return rng.choice((0, 2**63, 2**40, length + 1, length - 1)).to_bytes(8, "little") + data[8:]
    header = json_value(rng, data[8 : 8 + length], others)
    if rng.random() < 0.5:
        kinds = (b"F32", b"I32", b"F64", b"BF16", b"BOOL", b"U8", b"C64", b"F8_E4M3")
        header = data[8 : 8 + length].replace(b"F32", rng.choice(kinds), rng.choice((1, 1000)))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def zip_file(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """One entry of a file of torch.save damaged, as it is or unpacking to far more."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as held:
            entries = [(name, held.read(name)) for name in held.namelist()]
    except Exception:
        return changed_bytes(rng, data, others)
    at = rng.choice([*range(len(entries)), *([0] * 10)])  # the pickle is the first
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as held:
        for number, (name, inner) in enumerate(entries):
            found: bytes | None = inner
            if number == at:
                found = numbers_changed(rng, inner) if rng.random() < 0.5 else rng.choice(ANY)(rng, inner, others)
            if found is not None:
                held.writestr(name, found)
    return stream.getvalue()


def numbers_changed(rng: Random, data: bytes) -> bytes:
    """A whole number of a pickle made larger."""
    starts = [i for i, byte in enumerate(data[:-4]) if byte in b"JMKr"]
    if not starts:
        return data
    at = rng.choice(starts)
    width = {ord("J"): 4, ord("M"): 2, ord("K"): 1, ord("r"): 4}[data[at]]
    return data[: at + 1] + rng.choice((b"\xff" * width, b"\x00" * width, rng.randbytes(width))) + data[at + 1 + width :]


def pickle_file(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return numbers_changed(rng, data)


STRUCTURED: dict[str, tuple[Damage, ...]] = {
    ".json": (json_value,), ".jsonl": (json_lines,), ".yaml": (yaml_text,), ".npy": (npy_file,), ".tar": (tar_file, tar_file, bomb),
    ".safetensors": (safetensors_file,), ".pt": (zip_file,), ".pkl": (pickle_file,), ".pth": (pickle_file,),
}  # fmt: skip


def damaged(rng: Random, name: str, data: bytes, others: Sequence[bytes]) -> bytes | None:
    """The file after damage of one kind: half of the time of its own format, as its suffix names it."""
    return choose(rng, name)(rng, data, others)


def choose(rng: Random, name: str) -> Damage:
    own = next((kinds for suffix, kinds in STRUCTURED.items() if name.endswith(suffix)), ())
    if own and rng.random() < 0.6:
        found = rng.choice(own)
        return found if found is not bomb or rng.random() < 0.05 else own[0]
    return rng.choice(ANY)
