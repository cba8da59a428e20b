"""Damage to JSON and YAML: values that no reader expects, at any place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from tests.fuzz.any_bytes import flipped_bits

DEEP = 100_000  # levels of a nested value
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
