"""Pairs and their builder: tables without repeats, indices that lead back to what was asked for."""

import pytest
import torch

from tagsds.data.builder import PairBuilder
from tagsds.data.pairs import Images, Pairs, geometry_of, select_images
from tagsds.data.ragged import Ragged
from tagsds.data.shards import load_bank


@pytest.fixture(scope="module")
def bank(world):
    return load_bank(world, "dev")[0]


def small() -> Pairs:
    """Texts of 2, 4, 3 pieces; images of 1, 3, 2 regions; pairs (2,0) (0,2) (2,2); text 1 and image 1 unused."""
    texts = Ragged(torch.arange(9) + 10, torch.tensor([2, 4, 3]))
    images = Images(
        Ragged(torch.arange(12.0).view(6, 2), torch.tensor([1, 3, 2])),
        torch.arange(42.0).view(6, 7),
        torch.tensor([True, False, True, False, False, True]),
    )
    return Pairs(texts, images, torch.tensor([2, 0, 2]), torch.tensor([0, 2, 2]))


def spelt(pairs: Pairs) -> list[tuple[list, list, list, list | None]]:
    """Each pair written out: pieces, region rows, geometry rows, masks."""
    out = []
    for t, i in zip(pairs.text_of_pair.tolist(), pairs.image_of_pair.tolist()):
        begin = int(pairs.images.lengths[:i].sum())
        end = begin + int(pairs.images.lengths[i])
        masked = None if pairs.images.masked is None else pairs.images.masked[begin:end].tolist()
        region, place = pairs.images.regions.values[begin:end], pairs.images.geometry[begin:end]
        out.append((pairs.texts[t].tolist(), region.tolist(), place.tolist(), masked))
    return out


def test_lengths():
    assert small().lengths.tolist() == [3 + 1, 2 + 2, 3 + 2]
    assert len(small()) == 3


def test_compact_drops_unused_rows_and_keeps_every_pair():
    before, after = small(), small().compact()
    assert after.texts.lengths.tolist() == [2, 3] and after.texts.values.tolist() == [10, 11, 16, 17, 18]
    assert after.images.lengths.tolist() == [1, 2]
    assert after.images.regions.values.tolist() == [[0, 1], [8, 9], [10, 11]]
    assert after.images.masked.tolist() == [True, False, True]
    assert after.text_of_pair.tolist() == [1, 0, 1] and after.image_of_pair.tolist() == [0, 1, 1]
    assert spelt(after) == spelt(before)


def test_subset_keeps_order_and_repeats():
    whole = small()
    part = whole.subset(torch.tensor([2, 0, 2]))
    written = spelt(whole)
    assert spelt(part) == [written[2], written[0], written[2]]
    assert part.lengths.tolist() == [5, 4, 5]
    assert part.images is whole.images  # tables are shared, not copied
    assert spelt(part.compact()) == spelt(part)


def test_select_images_in_the_order_asked_for():
    chosen = select_images(small().images, torch.tensor([2, 0, 2]))
    assert chosen.lengths.tolist() == [2, 1, 2]
    assert chosen.regions.values[:, 0].tolist() == [8, 10, 0, 8, 10]
    assert chosen.geometry[:, 0].tolist() == [28, 35, 0, 28, 35]
    assert chosen.masked.tolist() == [False, True, True, False, True]
    unmasked = Images(small().images.regions, small().images.geometry)
    assert select_images(unmasked, torch.tensor([1])).masked is None


def test_geometry_by_hand():
    row = geometry_of(torch.tensor([[0.25, 0.5, 0.75, 0.625]])).tolist()[0]
    assert row == [0.25, 0.5, 0.75, 0.625, 0.5, 0.125, 0.0625]


def test_builder_embeds_each_image_and_caption_once(bank):
    builder = PairBuilder(bank)
    captions = torch.tensor([[7, 3], [3, 31]])
    images = torch.tensor([[5, 1], [5, 11]])
    rows = builder.captions(captions)
    first = builder.pairs(rows, images)
    second = builder.pairs(rows[0, 0].expand(3), torch.tensor([1, 2, 5]))
    pairs = builder.build()
    assert first == slice(0, 4) and second == slice(4, 7)
    assert rows.shape == captions.shape
    assert len(pairs.texts) == 3  # 3, 7, 31
    assert len(pairs.images) == 4  # 1, 2, 5, 11
    asked = [(7, 5), (3, 1), (3, 5), (31, 11), (7, 1), (7, 2), (7, 5)]
    assert len(pairs) == len(asked)
    for (caption, image), (pieces, regions, geometry, _) in zip(asked, spelt(pairs)):
        assert pieces == bank.tokens[caption].tolist()
        assert regions == bank.regions[image].tolist()
        box = bank.boxes[int(bank.regions.lengths[:image].sum()) :][: len(regions)]
        assert torch.tensor(geometry)[:, :4].tolist() == box.tolist()


def test_builder_numbers_texts_across_calls(bank):
    builder = PairBuilder(bank)
    captions = builder.captions(torch.tensor([4, 2]))
    free = builder.texts(Ragged(torch.tensor([2, 99, 3, 2, 98, 97, 3]), torch.tensor([3, 4])))
    assert captions.tolist() == [1, 0] and free.tolist() == [2, 3]
    builder.pairs(free.flip(0), torch.tensor([0, 6]))
    builder.pairs(captions[:1], torch.tensor([6]))
    pieces = [entry[0] for entry in spelt(builder.build())]
    assert pieces == [[2, 98, 97, 3], [2, 99, 3], bank.tokens[4].tolist()]


def test_builder_takes_broadcast_shapes(bank):
    builder = PairBuilder(bank)
    rows = builder.captions(torch.tensor([0, 5]))
    images = torch.tensor([[3, 4, 5], [0, 4, 3]])
    where = builder.pairs(rows[:, None].expand_as(images), images)
    pairs = builder.build()
    assert where == slice(0, 6)
    assert [len(entry[1]) for entry in spelt(pairs)] == [len(bank.regions[i]) for i in images.flatten().tolist()]
    assert [entry[0] for entry in spelt(pairs)] == [bank.tokens[c].tolist() for c in (0, 0, 0, 5, 5, 5)]
