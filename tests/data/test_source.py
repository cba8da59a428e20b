"""The bank of a step: whole partition or a window of shards."""

import json
import shutil

import pytest
import torch

from tagsds.data.shards import load_bank
from tagsds.data.source import BankSource, DataConfig
from tagsds.draw import Draw
from tagsds.errors import UserError
from tests.data.corpus import Alone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards6(world, tmp_path_factory):
    """Six training shards of ten images, cut from the two of the world."""
    import hashlib
    import io
    import tarfile

    folder = shutil.copytree(world, tmp_path_factory.mktemp("source") / "six")
    manifest = json.loads((folder / "manifest.json").read_text())
    samples: dict[str, list] = {}
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                samples.setdefault(member.name.split(".")[0], []).append((member.name, tar.extractfile(member).read()))
        path.unlink()
    lines, keys = [], list(samples)
    for number in range(6):
        path = folder / f"train-{number:06d}.tar"
        own = [entry for key in keys[10 * number : 10 * number + 10] for entry in samples[key]]
        with tarfile.open(path, "w") as tar:
            for name, data in own:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        data = path.read_bytes()
        lines.append({"file": path.name, "samples": 10, "captions": 50, "regions": 0, "bytes": len(data)})
        lines[-1]["sha256"] = hashlib.sha256(data).hexdigest()
    manifest["splits"]["train"]["shards"] = lines
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def largest(folder) -> int:
    return max(path.stat().st_size for path in folder.glob("train-*.tar"))


def source_of(folder, shards: float, rank: int = 0, ranks: int = 1, seed: int = 3, window_steps: int = 4) -> BankSource:
    """Memory for `shards` of the largest shards."""
    config = DataConfig(max_gib=shards * largest(folder) / 2**30, window_steps=window_steps)
    return BankSource(str(folder), config, seed, Alone(rank, ranks))


def shard_numbers(bank) -> list[int]:
    """Ten images a shard, named in the order of the split."""
    assert all(key.startswith("train-") for key in bank.keys)
    return [int(key.split("-")[1]) // 10 for key in bank.keys[::10]]


def test_whole_partition_is_loaded_once_and_is_the_same_on_all_ranks(shards6, world):
    everything, _ = load_bank(world, "train")
    for rank in range(2):
        source = source_of(shards6, 7, rank, 2)
        bank, window = source.at(0)
        assert source.whole and window == 0
        assert bank.keys == everything.keys and bank.texts == everything.texts
        assert torch.equal(bank.regions.values, everything.regions.values)
        again, window = source.at(10**6)
        assert again is bank and window == 0


def test_memory_limit_is_respected(shards6):
    for limit, count in ((2.5, 2), (1.0, 1), (3.99, 3)):
        source = source_of(shards6, limit)
        bank, _ = source.at(0)
        assert not source.whole and source.per_window == count
        assert bank.num_images == 10 * count
        files = [source.shards[i]["bytes"] for i in source.window(0)]
        assert sum(files) <= limit * largest(shards6)
        assert bank.gib() * 2**30 <= limit * largest(shards6)


def test_limit_that_holds_no_shard(shards6):
    with pytest.raises(UserError) as error:
        source_of(shards6, 0.5)
    text = str(error.value)
    assert "data.max_gib" in text and str(shards6) in text and "--shard-size" in text


def test_one_rank_walks_through_every_shard_once_a_pass(shards6):
    source = source_of(shards6, 2.5)
    walked = [shard_numbers(source.at(step)[0]) for step in range(0, 24, 4)]  # windows of 4 steps, 2 shards each
    flat = [number for window in walked for number in window]
    assert sorted(flat[:6]) == sorted(flat[6:]) == list(range(6))
    assert flat[:6] != flat[6:]


def test_ranks_hold_other_shards(shards6):
    sources = [source_of(shards6, 1.5, rank, 3) for rank in range(3)]
    for window in range(8):
        own = [source.window(window) for source in sources]
        assert all(len(shards) == 1 for shards in own)
        assert len({shards[0] for shards in own}) == 3
    first_pass = {source.window(window)[0] for source in sources for window in range(2)}
    assert first_pass == set(range(6))


def test_window_is_a_pure_function_of_seed_step_rank(shards6):
    walked = source_of(shards6, 2.5, 1, 2)
    banks = {step: walked.at(step)[0].keys for step in (0, 3, 4, 11, 12)}
    assert banks[0] == banks[3] and banks[0] != banks[4]
    for step, keys in banks.items():  # resumed at that step
        bank, window = source_of(shards6, 2.5, 1, 2).at(step)
        assert bank.keys == keys and window == step // 4
    orders = [[source_of(shards6, 1.5, seed=seed).window(n)[0] for n in range(12)] for seed in (3, 4)]
    assert orders[0] != orders[1]


def test_window_keeps_its_bank_until_it_ends(shards6):
    source = source_of(shards6, 2.5)
    bank, _ = source.at(0)
    assert source.at(3)[0] is bank
    assert source.at(4)[0] is not bank


def test_no_shard_twice_in_a_window_that_spans_two_passes(shards6):
    for seed in range(6):
        source = source_of(shards6, 4.5, seed=seed)  # 4 of 6: the second window crosses the border
        for window in range(6):
            shards = source.window(window)
            assert len(shards) == len(set(shards)) and len(shards) == 4


def test_every_rank_visits_all_captions_of_its_window(shards6):
    """10 images of 5 captions a shard; a window of 2 shards holds 100 captions, a rank takes 2 x 10 of them a step."""
    for rank in (0, 1):
        source = source_of(shards6, 2.5, rank=rank, ranks=2, window_steps=5)
        for window in (0, 1):  # five steps each
            slots = (2 * rank, 2 * rank + 1)
            seen = [source.positives(Draw(3, 5 * window + step, slot), 10, 4) for step in range(5) for slot in slots]
            assert sorted(torch.cat(seen).tolist()) == list(range(100))


def test_a_whole_partition_is_shared_by_all_slots(shards6):
    """300 captions; 2 ranks with one slot each take 30 a step: one pass in 5 steps."""
    sources = [source_of(shards6, 100.0, rank=rank, ranks=2) for rank in (0, 1)]
    seen = [sources[slot].positives(Draw(3, step, slot), 30, 2) for step in range(5) for slot in (0, 1)]
    assert sorted(torch.cat(seen).tolist()) == list(range(300))
