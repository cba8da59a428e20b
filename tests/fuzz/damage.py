"""Damage to a file's bytes: what disks, copies and editors do, and what a hostile file would. Everything follows from the given
`random.Random`, so that a case can be made again from its seed and number. This module has the binary formats and the choice among
all; `any_bytes` and `strange_texts` have the rest."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from random import Random

import numpy as np

from tests.fuzz.any_bytes import ANY, Damage, bomb, changed_bytes, flipped_bits
from tests.fuzz.strange_texts import json_lines, json_value, yaml_text

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
