"""Examples: what a job learns from, one at a time (`load`), and how they become a batch (`collate`).

Texts alone: what a model learns to read on before it meets any image.

Pictures alone: what an image encoder is taught on before it meets any text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from diptych.batch import Batch, ImageKeys, Matching
from diptych.config.data import ImageSettings
from diptych.data.images.loading import ImageLoader, identity_of, image_loader, shown_in
from diptych.data.regions.frozen_features import FeatureKeys
from diptych.data.sources.answers import soft_scores
from diptych.data.sources.base import BadSample, Captioned, Question, Questioned
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.utils.rng import generator, uniform

TRIES = 8  # other images drawn before a pair is given up as a bad sample
LONGEST_TEXT = 4000  # characters; more can never reach a model and would only cost time


@runtime_checkable
class Examples(Protocol):
    """Random access to the examples of a job. Everything drawn is keyed by (seed, step, id)."""

    def __len__(self) -> int: ...

    def length(self, index: int) -> int:
        """Text tokens, roughly: what length-aware batching sorts by."""
        ...

    def load(self, index: int, seed: int, step: int) -> Any:
        """One example, ready to be collated. Raises BadSample."""
        ...

    def collate(self, loaded: list[Any], ids: Sequence[int], seed: int, step: int) -> Batch: ...


@dataclass(frozen=True)
class LoadedPair:
    """An image, as it is shown, and its caption; `shown` is the image of another sample where matching replaces it.
    `identity`: of the image (shown.identity_of).
    """

    image: Any
    caption: str
    shown: Any = None
    identity: int = 0


class PairExamples:
    """One example per (image, caption): the food of pre-training and of retrieval.

    With `matching` > 0 a batch carries a `Matching`: with that probability the image shown beside the caption is that
    of another sample, drawn uniformly. `images` without augmentation and `matching` 0 gives plain pairs. Where `images`
    shows regions, they stand in `Batch.regions` (ViLBERT, VisualBERT, VSE++, SCAN).

    Labels: ``image`` int64 ``(b,)``, the identity of each pair's image: captions of one are no negatives of each other.
    """

    def __init__(
        self, source: Captioned, tokenizer: Tokenizer, images: ImageSettings | ImageLoader, matching: float = 0.5
    ):
        self.source, self.tokenizer, self.shows, self.matching = source, tokenizer, image_loader(images), matching
        captions = [source.captions(i) for i in range(len(source))]
        self.owner = np.repeat(np.arange(len(captions)), [len(c) for c in captions])  # the image of each example
        self._first = np.cumsum([0] + [len(c) for c in captions])
        self._lengths = np.array([len(text.split()) + 2 for c in captions for text in c])
        self._identities = np.full(len(captions), -1)  # as far as they were asked for

    def __len__(self) -> int:
        return len(self.owner)

    def length(self, index: int) -> int:
        return int(self._lengths[index])

    def caption(self, index: int) -> str:
        """The caption of example `index`, as far as a model could read it."""
        image = int(self.owner[index])
        return self.source.captions(image)[index - self._first[image]][:LONGEST_TEXT]

    def load(self, index: int, seed: int, step: int) -> LoadedPair:
        image, caption = int(self.owner[index]), self.caption(index)
        check_text(caption, self.source.where(image))
        picture = self._picture(image, index, seed, step)
        return LoadedPair(picture, caption, self._replacement(image, index, seed, step), self._identity(image))

    def _identity(self, image: int) -> int:
        if self._identities[image] < 0:
            self._identities[image] = identity_of(self.shows, self.source, image)
        return int(self._identities[image])

    def _picture(self, image: int, index: int, seed: int, step: int) -> Any:
        return self.shows.load(self.source, image, partial(generator, seed, step, index, f"augment {image}"))

    def _replacement(self, image: int, index: int, seed: int, step: int) -> Any:
        """The picture of another sample, or None where the pair stays together: so it does where all are the same photo."""
        if not self.matching or len(self.source) < 2:
            return None
        draws = uniform(seed, step, [index], "matching", 1 + TRIES)[0]
        if draws[0] >= self.matching:
            return None
        broken = False
        for draw in draws[1:]:
            other = int(draw * (len(self.source) - 1))
            other += other >= image
            try:
                if self._identity(other) != self._identity(image):
                    return self._picture(other, index, seed, step)
            except BadSample:  # it is reported when it is drawn as a sample of its own
                broken = True
        if broken:
            raise BadSample(self.source.where(image), "no readable image was drawn to replace it")
        return None

    def collate(self, loaded: list[LoadedPair], ids: Sequence[int], seed: int, step: int) -> Batch:
        matching = None
        if self.matching > 0:
            shown = self.shows.stack([x.image if x.shown is None else x.shown for x in loaded])
            matching = Matching(shown, torch.tensor([x.shown is None for x in loaded]))
        text = self.tokenizer.encode([x.caption for x in loaded])
        labels = {"image": torch.tensor([x.identity for x in loaded])}
        batch = Batch(seed, step, torch.tensor(ids), text=text, matching=matching, labels=labels)
        return shown_in(batch, self.shows.stack([x.image for x in loaded]))


class QuestionExamples:
    """One example per question, answered by choosing among `answers` (VQA as classification).

    Labels: ``targets`` float ``(b, len(answers))``, soft scores in [0, 1]; ``question`` int64 ``(b,)``, the question's id.
    `normalise` is what `answers` were normalised with.
    """

    def __init__(
        self,
        source: Questioned,
        tokenizer: Tokenizer,
        images: ImageSettings | ImageLoader,
        answers: Sequence[str],
        normalise: Callable[[str], str],
    ):
        self.source, self.tokenizer, self.shows, self.normalise = source, tokenizer, image_loader(images), normalise
        self.place = {answer: i for i, answer in enumerate(answers)}

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return 1  # a question's length tells its kind, and a batch of one kind teaches the answers of that kind alone

    def load(self, index: int, seed: int, step: int) -> tuple[Any, Question]:
        question = self.source.question(index)
        check_text(question.text, self.source.where(index))
        return self.shows.load(self.source, question.image, partial(generator, seed, step, index, "augment")), question

    def collate(self, loaded: list[tuple[Any, Question]], ids: Sequence[int], seed: int, step: int) -> Batch:
        targets = torch.zeros(len(loaded), len(self.place))
        for row, (_, question) in zip(targets, loaded, strict=True):
            for answer, score in soft_scores(question.answers, self.normalise).items():
                if answer in self.place:
                    row[self.place[answer]] = score
        batch = Batch(
            seed,
            step,
            torch.tensor(ids),
            text=self.tokenizer.encode([q.text[:LONGEST_TEXT] for _, q in loaded]),
            labels={"targets": targets, "question": torch.tensor([q.id for _, q in loaded])},
        )
        return shown_in(batch, self.shows.stack([shown for shown, _ in loaded]))


def check_text(text: str, where: str) -> None:
    """Raises BadSample for a text that no model can read."""
    if not text.strip():
        raise BadSample(where, "empty caption or question")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSample(where, "text that is not valid Unicode (a lone surrogate)") from None


def readable(text: str) -> bool:
    """Whether `check_text` lets it pass."""
    try:
        check_text(text, "")
    except BadSample:
        return False
    return True


class TextExamples:
    """Every caption of a source, without its picture."""

    def __init__(self, source: Captioned, tokenizer: Tokenizer):
        self.source, self.tokenizer = source, tokenizer
        self._places = [(i, k) for i in range(len(source)) for k in range(len(source.captions(i)))]

    def __len__(self) -> int:
        return len(self._places)

    def length(self, index: int) -> int:
        return len(self._text(index).split()) + 2

    def load(self, index: int, seed: int, step: int) -> str:
        text = self._text(index)
        check_text(text, self.source.where(self._places[index][0]))
        return text

    def collate(self, loaded: list[str], ids: Sequence[int], seed: int, step: int) -> Batch:
        return Batch(seed, step, torch.tensor(ids), text=self.tokenizer.encode(loaded))

    def _text(self, index: int) -> str:
        image, which = self._places[index]
        return self.source.captions(image)[which][:LONGEST_TEXT]


class ImageExamples:
    """Every picture of a source, and its mirror image: examples 2i and 2i + 1. `images` shows pixels or a CNN's grid.
    `names`: what pictures are known by, where what a frozen network sees in them is kept; they may not be augmented.
    """

    def __init__(self, source: Captioned, images: ImageSettings | ImageLoader, names: FeatureKeys | None = None):
        self.source, self.shows, self.names = source, image_loader(images), names

    def __len__(self) -> int:
        return 2 * len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[np.ndarray, bytes]:
        picture = self.shows.load(self.source, index // 2, partial(generator, seed, step, index, "augment"))
        name = b"" if self.names is None else self.names.of(self.source, index // 2)
        return np.ascontiguousarray(picture[:, ::-1]) if index % 2 else picture, name

    def collate(self, loaded: list[tuple[np.ndarray, bytes]], ids: Sequence[int], seed: int, step: int) -> Batch:
        pictures, names = zip(*loaded, strict=True)
        known = None if self.names is None else ImageKeys.from_digests(names, [index % 2 == 1 for index in ids])
        return shown_in(Batch(seed, step, torch.tensor(ids), image_keys=known), self.shows.stack(pictures))
