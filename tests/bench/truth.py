"""How many offline candidates are true of the other image, by rank: are the hardest negatives false at all?

    python -m tests.bench.truth --candidates FOLDER --data SHARDS [--scenes SEED] [--output truth.json]

Nobody has labelled them, so two answers are given.

By agreement, for captions by several annotators: a caption is nearly equal to an image where a caption of that image says nearly
the same, that is, where the cosine of their word pieces, weighted by idf, is above the threshold that a quarter of true pairs reach
(a caption against the other captions of its own image). With t = 1/4 the share of true pairs above it, u that of pairs drawn at
random and p that of the candidates of a rank, the share of true candidates is (p - u) / (t - u). A candidate that is false and
nevertheless described in like words counts too, so it is a bound from above, and a loose one where captions of one image speak of
different things.

By the scenes, for the drawn corpus (`--scenes`, the seed it was packed with): whether each statement of the caption holds there.

Beside them stands what the features can tell at all, where the shards have soft labels: the share of candidates with just the
classes of the caption's own image. Such an image may be false of the caption, and still nothing but its boxes tells the two apart.

Shapes: N = captions asked, M = images of each.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from preprocess.sources.world import WorldSource
from tagsds.data.bank import Bank
from tagsds.data.shards import load_bank
from tagsds.evaluators.console import text_table
from tagsds.files import write_json
from tagsds.formats.candidates import Candidates
from tagsds.formats.manifest import read_manifest

OTHERS = 4  # captions of an image that a caption is held against: a true pair has no more in corpora of five
TRUE_ABOVE = 0.25  # share of true pairs above the threshold
BLOCK = 64  # captions compared together
EDGES = (0, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)  # image ranks that begin a band
MOST_OF_BAND = 8  # image ranks that stand for a band


class Agreement:
    """Nearness of captions to images by the captions of those images."""

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.vocabulary = int(bank.tokens.values.max()) + 1
        rows = torch.repeat_interleave(torch.arange(bank.num_captions, device=bank.device), bank.tokens.lengths)
        once = torch.unique(rows * self.vocabulary + bank.tokens.values)  # a piece counts once a caption
        self.pieces, owner = once % self.vocabulary, once // self.vocabulary
        counts = torch.bincount(self.pieces, minlength=self.vocabulary)
        self.idf = torch.log(bank.num_captions / counts.clamp(min=1).double()).float()  # 0 for [CLS] and [SEP]
        self.lengths = torch.bincount(owner, minlength=bank.num_captions)
        self.starts = self.lengths.cumsum(0) - self.lengths
        squares = torch.zeros(bank.num_captions, device=bank.device).index_add_(0, owner, self.idf[self.pieces].square())
        self.norms = squares.sqrt().clamp(min=1e-12)

    def __call__(self, captions: Tensor, images: Tensor) -> Tensor:
        """float32 [N, M]: the highest cosine of a caption (int64 [N]) with the first OTHERS captions of each image (int64 [N, M]),
        itself left out; 0 where an image has no other caption."""
        parts = [self._block(*both) for both in zip(captions.split(BLOCK), images.split(BLOCK), strict=True)]
        return torch.cat(parts) if parts else images.float()

    def _block(self, captions: Tensor, images: Tensor) -> Tensor:
        table = self.bank.captions_of_image
        n, m = images.shape
        places = torch.arange(OTHERS + 1, device=images.device)
        known = places < table.lengths[images][..., None]  # [n, m, OTHERS + 1]
        found = table.values[(table.offsets[images][..., None] + places).clamp(max=len(table.values) - 1)]
        usable = known & (found != captions[:, None, None])
        usable &= usable.cumsum(-1) <= OTHERS
        row, column, _ = usable.nonzero(as_tuple=True)
        others = found[usable]
        query = torch.zeros(n, self.vocabulary, device=images.device)
        own = self._pieces(captions)
        query[own[0], own[1]] = self.idf[own[1]].square()
        which, pieces = self._pieces(others)
        dots = torch.zeros(len(others), device=images.device).index_add_(0, which, query[row[which], pieces])
        cosines = dots / (self.norms[others] * self.norms[captions[row]])
        best = torch.zeros(n * m, device=images.device)
        return best.scatter_reduce_(0, row * m + column, cosines, "amax").view(n, m)

    def _pieces(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        """For each piece of the captions: its caption's place among them, and the piece."""
        lengths = self.lengths[captions]
        which = torch.repeat_interleave(torch.arange(len(captions), device=captions.device), lengths)
        first = lengths.cumsum(0) - lengths
        return which, self.pieces[self.starts[captions][which] + torch.arange(len(which), device=which.device) - first[which]]


@dataclass(frozen=True)
class Band:
    """Image ranks first to last of each caption, and the share of candidates among them that is true: by agreement, and by the
    scenes of a drawn corpus; and the share that has the same set of classes as the caption's image."""

    first: int
    last: int
    agreement: float
    scenes: float | None = None
    alike: float | None = None


def share_of(agreements: Tensor, threshold: float, random: float) -> float:
    """Share of true ones among pairs with these agreements, 0 to 1; `random`: share of random pairs above the threshold."""
    above = (agreements > threshold).float().mean().item()
    return min(max((above - random) / max(TRUE_ABOVE - random, 1e-6), 0.0), 1.0)


def ranks_of(first: int, last: int) -> Tensor:
    """At most MOST_OF_BAND ranks that stand for a band."""
    return torch.linspace(first, last, min(MOST_OF_BAND, last - first + 1)).round().long()


def bands_of(bank: Bank, candidates: Candidates, captions: Tensor, generator: torch.Generator) -> list[Band]:
    """Shares by agreement, for captions int64 [N] of images that have several."""
    agreement = Agreement(bank)
    own = bank.image_of_caption[captions]
    true = agreement(captions, own[:, None])
    threshold = torch.quantile(true.flatten(), 1 - TRUE_ABOVE).item()
    shift = torch.randint(1, bank.num_images, (len(captions), MOST_OF_BAND), generator=generator)
    random = (agreement(captions, (own[:, None] + shift) % bank.num_images) > threshold).float().mean().item()
    bands = []
    width = candidates.images_of_caption.shape[1]
    for first, end in zip(EDGES, [*EDGES[1:], width], strict=True):
        if first < (end := min(end, width)):
            images = candidates.images_of_caption[captions][:, ranks_of(first, end - 1)].long()
            bands.append(Band(first, end - 1, share_of(agreement(captions, images.clamp(min=0))[images >= 0], threshold, random)))
    return bands


def by_scenes(bank: Bank, candidates: Candidates, captions: Tensor, bands: list[Band], source: WorldSource) -> list[Band]:
    """The bands with the share of candidates in whose scene every statement of the caption holds, at margin 0."""
    made = {key: source.scene(key) for key in bank.keys}
    found = []
    for band in bands:
        hits = []
        for caption in captions.tolist():
            _, sentences = made[bank.keys[int(bank.image_of_caption[caption])]]
            sentence = next(one for one in sentences if one.text == bank.texts[caption])
            images = candidates.images_of_caption[caption, ranks_of(band.first, band.last)].tolist()
            hits += [sentence.holds(made[bank.keys[image]][0], margin=0.0) for image in images if image >= 0]
        found.append(replace(band, scenes=sum(hits) / len(hits)))
    return found


def class_sets(bank: Bank) -> Tensor:
    """Which classes the regions of each image have, by their likeliest one: bool [images, C]."""
    assert bank.classes is not None
    owner = torch.repeat_interleave(torch.arange(bank.num_images), bank.regions.lengths)
    sets = torch.zeros(bank.num_images, bank.classes.shape[1], dtype=torch.bool)
    sets[owner, bank.classes.argmax(dim=1)] = True
    return sets


def by_classes(bank: Bank, candidates: Candidates, captions: Tensor, bands: list[Band]) -> list[Band]:
    """The bands with the share of candidates whose set of classes is that of the caption's image."""
    sets = class_sets(bank)
    own = sets[bank.image_of_caption[captions]][:, None]
    found = []
    for band in bands:
        images = candidates.images_of_caption[captions][:, ranks_of(band.first, band.last)].long()
        same = (sets[images.clamp(min=0)] == own).all(dim=2)[images >= 0]
        found.append(replace(band, alike=same.float().mean().item()))
    return found


def measure(args: argparse.Namespace) -> list[Band]:
    manifest = read_manifest(args.data)
    bank, _ = load_bank(args.data, args.split, checksum=False, classes=manifest.num_classes > 0)
    candidates = Candidates.read(args.candidates, manifest, args.split)
    generator = torch.Generator().manual_seed(0)
    pool = (bank.captions_of_image.lengths[bank.image_of_caption] > 1).nonzero().squeeze(1)
    captions = pool[torch.randperm(len(pool), generator=generator)[: args.sample]]
    bands = bands_of(bank, candidates, captions, generator)
    if bank.classes is not None:
        bands = by_classes(bank, candidates, captions, bands)
    if args.scenes is None:
        return bands
    source = WorldSource({split: counts["images"] for split, counts in manifest.splits.items()}, args.scenes)
    return by_scenes(bank, candidates, captions, bands, source)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.truth", description="Share of true offline candidates, by rank.")
    parser.add_argument("--candidates", type=Path, required=True, help="a folder of tagsds-mine")
    parser.add_argument("--data", type=Path, required=True, help="the shards that were mined")
    parser.add_argument("--split", default="train")
    parser.add_argument("--scenes", type=int, metavar="SEED", help="of the drawn corpus: ask its scenes, too")
    parser.add_argument("--sample", type=int, default=1000, metavar="N", help="captions that are asked (1000)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    bands = measure(args)
    cell = lambda share: "" if share is None else f"{100 * share:.1f}"  # noqa: E731
    rows = [[f"{band.first}..{band.last}", cell(band.agreement), cell(band.scenes), cell(band.alike)] for band in bands]
    print(text_table(["image ranks; true, %", "at most, by agreement", "by the scenes", "same classes"], rows))
    if args.output:
        write_json(args.output, {"bands": [asdict(band) for band in bands]})


if __name__ == "__main__":
    main()
