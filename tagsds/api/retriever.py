"""The Python interface to a trained checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tagsds.api.encodings import Encodings
from tagsds.api.items import Gallery, Hit, ImageLike, as_list
from tagsds.api.pictures import PictureReader
from tagsds.data.bank import Bank
from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.data.reading import tokenize
from tagsds.data.shards import load_bank
from tagsds.data.spans import find_spans
from tagsds.data.vocabulary import corpus_tokenizer, load_tokenizer
from tagsds.data.words import Spelling, sentence_table
from tagsds.draw import Draw
from tagsds.errors import UserError
from tagsds.formats.manifest import read_manifest
from tagsds.models.load import check_data, find_checkpoint, load_model, positions_of_model, read_config
from tagsds.negatives.attested import Attested
from tagsds.negatives.sentences import Negatives, Rules, Sentence, SentenceWriter, check_writes
from tagsds.negatives.writer import SyntheticConfig
from tagsds.ranks import keep_float32_exact
from tagsds.scoring.alignment import align
from tagsds.scoring.proofread import Word, check_proofreads, proofread
from tagsds.scoring.registry import scorer_of

BLOCK = 256  # images or captions of a search that are met at a time


def load(
    folder: str | Path, corpus: str | Path | Retriever | None = None, device: str | torch.device | None = None, *,
    split: str = "test", vision: str | Path | None = None,
) -> Retriever:  # fmt: skip
    """A trained checkpoint, ready to score.

    folder    a training run or its export, of the encoder or of a matcher (VSRN, SCAN, BFAN)
    corpus    packed shards, of which the images and captions of `split` are kept in memory and found by key; a retriever: the
              corpus, split and device that it has loaded, without a second copy; None: images are given as `Regions`
    device    "cpu", "cuda", ...; None: a GPU where there is one
    vision    folder (or name) of the vision model that the corpus was extracted with, for images that are pictures; None: the one
              that the corpus's manifest names, where it is on this disk
    raises    UserError: one sentence that names what is wrong and what to do
    """
    keep_float32_exact()
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path, _ = find_checkpoint(Path(folder))
    config = read_config(path)
    if corpus is None:
        reader = PictureReader(None, vision, place)
        gallery, tokenizer = Gallery(None, "no corpus", config.region_dim, place, reader), load_tokenizer(path)
    elif isinstance(corpus, Retriever):
        gallery, tokenizer = corpus.gallery, corpus.tokenizer
        if gallery.manifest is None:
            raise UserError(f"the retriever of {corpus.folder} was loaded without a corpus; give the folder of packed shards.")
        check_data(config, path, gallery.manifest)
    else:
        manifest = read_manifest(corpus)
        manifest.shards(split)  # an unknown split ends it here
        check_data(config, path, manifest)
        reader = PictureReader(manifest, vision, place)
        bank, tokenizer = load_bank(corpus, split, classes=False)[0].to(place), corpus_tokenizer(manifest)
        gallery = Gallery(bank, f"split '{split}' of {corpus}", config.region_dim, place, reader)
    model = load_model(path)
    torch.nn.Module.to(model, gallery.device)  # in place; transformers' own `to` is not typed
    return Retriever(path, model, tokenizer, gallery)


class Retriever:
    """What `load` gives. Shapes: I images, S sentences, D width of a region feature.

    An image is the key of an image of the corpus (or its file name), a picture (the path of a file or a PIL.Image) where the corpus
    was made by tagsds-extract, or `Regions(features, boxes)`. Every method raises UserError, one sentence, for input that cannot be
    used.

    folder      the checkpoint
    model       a Hugging Face model in evaluation mode
    tokenizer   of the corpus, else of the checkpoint
    gallery     finds images
    encodings   of the corpus, which a matcher makes in its first search and keeps; None of the encoder
    """

    def __init__(self, folder: Path, model: Any, tokenizer: Any, gallery: Gallery) -> None:
        self.folder, self.model, self.tokenizer, self.gallery = folder, model, tokenizer, gallery
        self.device = gallery.device
        self.scorer = scorer_of(model)
        self.scorer.ready()
        kept = self.scorer.encodes_apart and gallery.bank is not None
        self.encodings = Encodings(self.scorer, gallery.bank) if kept else None  # type: ignore[arg-type]

    @property
    def keys(self) -> Sequence[str]:
        """Keys of the images of the corpus, in the order of the split."""
        return self._corpus().keys

    def captions(self, image: str) -> list[str]:
        """The captions that the corpus has of an image."""
        bank = self._corpus()
        return [bank.texts[int(number)] for number in bank.captions_of_image[self.gallery.row(image)]]

    def score(self, images: ImageLike | Sequence[ImageLike], sentences: str | Sequence[str]) -> Tensor:
        """How well each sentence describes each image: float32 [I, S] on the CPU.

        Of the encoder s(I, T) in 0..1, the sigmoid of the ranking logit; of a matcher the similarity. A single image or sentence
        counts as one.
        """
        pictures = as_list(images)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if not len(pictures) or not texts:
            return torch.empty(len(pictures), len(texts))
        table = self._texts(texts)
        blocks = [self._compare(table, self.gallery.table(part)) for part in _parts(pictures, BLOCK)]
        return self._shown(torch.cat(blocks))

    def search(
        self, query: ImageLike, k: int = 10, *, by: Literal["sentence", "image"] | None = None, among: Sequence[int] | None = None
    ) -> list[Hit]:
        """The k best images of the corpus for a sentence, or the k best captions for an image; the best first, of equal ones the
        earlier. Exact: everything is scored. A matcher encodes the corpus once; the encoder reads every pair, each time.

        by      what a string is: None takes the key of an image for that image, any other string for a sentence; "image" also
                takes the path of a picture, which is else given as pathlib.Path or PIL.Image
        among   numbers of images (or of captions) as in `Hit.number`: only these are scored, such as a matcher's shortlist
        """
        if k < 1:
            raise UserError(f"k is {k}; ask for at least one hit.")
        bank = self._corpus()
        by_image = not isinstance(query, str) or by == "image" or (by is None and query in self.gallery.index)
        total = bank.num_captions if by_image else bank.num_images
        numbers = torch.arange(total) if among is None else torch.as_tensor(list(among), dtype=torch.int64)
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < total:
            kind = "captions" if by_image else "images"
            bad = next(number for number in numbers.tolist() if not 0 <= number < total)
            raise UserError(f"among names number {bad} where {self.gallery.name} has {total} {kind}; give numbers of hits.")
        raw = self._scores_of(query, by_image, numbers)
        order = torch.sort(raw, descending=True, stable=True).indices[:k]
        hits = zip(numbers[order].tolist(), self._shown(raw[order]).tolist(), strict=True)
        if by_image:
            owners = bank.image_of_caption
            return [Hit(bank.keys[int(owners[number])], score, number, bank.texts[number]) for number, score in hits]
        return [Hit(bank.keys[number], score, number) for number, score in hits]

    def _scores_of(self, query: ImageLike, by_image: bool, numbers: Tensor) -> Tensor:
        """Raw scores of the numbered images with a sentence, or captions with an image: float32 [len(numbers)] on the CPU."""
        bank, parts = self._corpus(), [torch.empty(0)]
        blocks = [some.to(self.device) for some in numbers.split(BLOCK)]
        if by_image:
            image = self.gallery.table([query])
            self._check_length(bank.tokens.lengths[numbers.to(self.device)])
            if self.encodings is not None:
                return self.encodings.of_image(image).cpu()[numbers]
            parts += [self._compare(bank.text_table(some), image).flatten().cpu() for some in blocks]
        else:
            text = self._texts([query])
            if self.encodings is not None:
                return self.encodings.of_sentence(text).cpu()[numbers]
            parts += [self._compare(text, bank.image_table(some)).flatten().cpu() for some in blocks]
        return torch.cat(parts)

    def proofread(self, image: ImageLike, sentence: str) -> list[Word]:
        """The words of a sentence, in order: how probably each was replaced given the image, and what it should be.

        Needs the encoder with a trained discrimination head (TAGS-DC); `suggestion` and `certainty` are None where the correction
        head is not trained.
        """
        self._encoder("proofreads")
        check_proofreads(self.model, self.folder)
        self._texts([sentence])
        zero = torch.zeros(1, dtype=torch.int64, device=self.device)
        return proofread(self.model, self.tokenizer, [Spelling.of(self.tokenizer, sentence)], self.gallery.table([image]), zero)[0]

    def align(self, image: ImageLike, sentence: str) -> list[tuple[str, Tensor]]:
        """Each word of a sentence, in order, with the share of each region in it: float32 [R] on the CPU, which sum to 1. R regions
        in the order of the corpus, or of `Regions`. See tagsds.scoring.alignment."""
        self._encoder("aligns words with regions")
        self._texts([sentence])
        spelling = Spelling.of(self.tokenizer, sentence)
        ends = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        weights = align(self.model, ends, spelling, self.gallery.table([image])).cpu()
        chars = [spelling.chars(word) for word in spelling.words()]
        return [(sentence[start:end], row) for (start, end), row in zip(chars, weights, strict=True)]

    def write_negatives(
        self, image: ImageLike, sentence: str, n: int = 10, *, rules: Rules | None = None, config: SyntheticConfig | None = None,
        seed: int = 0,
    ) -> Negatives:  # fmt: skip
        """At most n false sentences of the image, written from a true one by masking and refilling, the hardest first. The list's
        `dropped` has the sentences that each filter dropped; those that the corpus has of the image are what the filters know
        to be true.

        rules    filters and thresholds
        config   how many maskings and refills, temperature, probability of masking
        seed     the same seed gives the same sentences on the same device
        """
        self._encoder("writes negatives")
        check_writes(self.model, self.folder)
        if n < 1:
            raise UserError(f"n is {n}; ask for at least one negative.")
        self._texts([sentence])
        spans = [span.as_json() for span in find_spans(sentence)]
        tokens, rows = tokenize(self.tokenizer, [sentence], [spans])
        bank = self._bank_of(image, tokens.values.long(), rows)
        spelled = Sentence.of(Spelling.of(self.tokenizer, sentence), rows.values, [span["kind"] for span in spans])
        rules = rules or Rules()
        attested = None
        if rules.attested and self.gallery.bank is not None:
            attested = Attested([self.gallery.bank.tokens], rules.attested, len(self.tokenizer))
        writer = SentenceWriter(self.model, self.scorer, self.tokenizer, config or SyntheticConfig(), rules, attested)  # type: ignore[arg-type]
        first = torch.zeros(1, dtype=torch.int64, device=self.device)
        return writer.write(bank, first, [spelled], n, Draw(seed, 0, 0))[0]

    def _bank_of(self, image: ImageLike, sentence: Tensor, spans: Ragged) -> Bank:
        """One image with the sentence as its first caption and the corpus's captions of it behind."""
        features, boxes = self.gallery.regions(image)
        captions = Ragged.from_rows([sentence.to(self.device), *self.gallery.captions(image)])
        count = len(captions)
        lengths = torch.cat([spans.lengths, torch.zeros(count - 1, dtype=torch.int64)])
        return Bank(
            tokens=captions,
            spans=Ragged(spans.values, lengths),
            image_of_caption=torch.zeros(count, dtype=torch.int64),
            captions_of_image=Ragged(torch.arange(count), torch.tensor([count])),
            regions=Ragged(features, torch.tensor([len(features)])),
            boxes=boxes,
        ).to(self.device)

    def _compare(self, texts: Ragged, images: Images) -> Tensor:
        """Raw scores, float32 [I, S]."""
        rows, columns = torch.arange(len(images), device=self.device), torch.arange(len(texts), device=self.device)
        pairs = Pairs(texts, images, columns.repeat(len(rows)), rows.repeat_interleave(len(columns)))
        return self.scorer(pairs).view(len(rows), len(columns))

    def _shown(self, raw: Tensor) -> Tensor:
        """As `score` gives them."""
        return (torch.sigmoid(raw) if self.model.averages_sigmoids else raw).cpu()

    def _texts(self, sentences: Sequence[Any]) -> Ragged:
        """Word pieces on the device, once they can be read."""
        for sentence in sentences:
            if not isinstance(sentence, str):
                raise UserError(f"a sentence is a string, not {type(sentence).__name__}.")
        table = sentence_table(self.tokenizer, sentences, positions_of_model(self.model.config))
        if int(table.lengths.min()) < 3:
            raise UserError("a sentence is empty; give one with a word at least.")
        return table.to(self.device)

    def _check_length(self, lengths: Tensor) -> None:
        """UserError for captions of the corpus that are longer than the model's positions."""
        positions = positions_of_model(self.model.config)
        if positions is not None and len(lengths) and int(lengths.max()) > positions:
            raise UserError(
                f"{self.gallery.name} has a caption of {int(lengths.max())} word pieces and the checkpoint's "
                f"max_position_embeddings is {positions}; pack the corpus again with --long-captions truncate."
            )

    def _corpus(self) -> Bank:
        if self.gallery.bank is None:
            raise UserError("no corpus was loaded, so there is nothing to search; give load() the folder of packed shards.")
        return self.gallery.bank

    def _encoder(self, does: str) -> None:
        """UserError of a matcher."""
        if self.model.scored_by != "pairs":
            raise UserError(f"{self.folder} is {self.model.kind}, and only the pair encoder {does}; load an encoder's checkpoint.")


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
