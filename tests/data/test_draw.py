"""Seeds and generators: each part of the key matters, nothing else does."""

import itertools

import torch

from tagsds.draw import Draw, generator, seed_of


def uniform(draw: Draw, purpose: str = "mask"):
    return torch.rand(4, generator=draw.generator("cpu", purpose)).tolist()


def test_same_key_same_numbers_whatever_the_global_state():
    torch.manual_seed(1)
    first = uniform(Draw(42, 3, 1))
    torch.manual_seed(2)
    torch.rand(100)
    assert uniform(Draw(42, 3, 1)) == first


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    uniform(Draw(1, 2, 3))
    assert torch.rand(3).tolist() == expected


def test_every_part_of_the_key_matters():
    keys = itertools.product((0, 1, 11), (0, 1, 11), (0, 1, 11), ("mask", "refill"))
    drawn = [tuple(uniform(Draw(seed, step, slot), purpose)) for seed, step, slot, purpose in keys]
    assert len(set(drawn)) == 54


def test_seeds_are_63_bit_and_depend_on_the_order():
    seeds = [seed_of(a, b) for a in range(30) for b in range(30)]
    assert len(set(seeds)) == 900
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61  # the whole range is used
    assert seed_of(1, 23) != seed_of(12, 3)
    assert seed_of(1, 2) != seed_of(2, 1)


def test_seed_is_the_same_in_every_process():
    """blake2b of '42/positives/0' in 8 bytes, little endian, halved: worked out with coreutils' b2sum -l 64."""
    assert seed_of(42, "positives", 0) == B2SUM >> 1
    assert generator("cpu", 42, "positives", 0).initial_seed() == B2SUM >> 1


B2SUM = int.from_bytes(bytes.fromhex("79339a0bc015b24e"), "little")
