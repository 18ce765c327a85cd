"""Training examples: loads them one at a time (`load`) and makes batches of them (`collate`).

The kinds: image-caption pairs, questions about images, texts only and images only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from diptych.batch import AnswerTargets, Batch, ImageKeys, Matching
from diptych.config.data import ImageSettings
from diptych.data.images.loading import ImageLoader, identity_of, image_loader, with_images
from diptych.data.regions.frozen_features import FeatureKeys
from diptych.data.sources.answers import answer_weights, soft_scores
from diptych.data.sources.base import BadSample, Captioned, Question, Questioned
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.utils.rng import generator, uniform

TRIES = 8  # other images drawn for a mismatched pair before it is a bad sample
MAX_TEXT_CHARS = 4000  # characters; tokenizers truncate long before this, so more would only cost time


@runtime_checkable
class Examples(Protocol):
    """Random access to the examples of a task. All random draws are keyed by (seed, step, id)."""

    def __len__(self) -> int: ...

    def length(self, index: int) -> int:
        """Approximate number of text tokens, by which batches group examples of similar length."""
        ...

    def load(self, index: int, seed: int, step: int) -> Any:
        """One example, ready for `collate`. Raises BadSample."""
        ...

    def collate(self, loaded: list[Any], ids: Sequence[int], seed: int, step: int) -> Batch:
        """The batch of several loaded examples; `ids` are their indices."""
        ...


@dataclass(frozen=True)
class LoadedPair:
    """A loaded image and its caption.

    `matching_image` is the image of another sample for a mismatched ITM pair, None for a matched one; `identity` is the
    image's (see images.loading.identity_of).
    """

    image: Any
    caption: str
    matching_image: Any = None
    identity: int = 0


class PairExamples:
    """One example per (image, caption), for pre-training and retrieval.

    With `matching` > 0 a batch has a `Matching`: with that probability the caption is paired with the image of another
    sample, drawn uniformly. Where `images` loads regions, they are in `Batch.regions` (ViLBERT, VisualBERT, VSE++,
    SCAN).

    Labels: ``image`` int64 ``(b,)``, the identity of each pair's image: captions of the same image are not negatives of
    each other.
    """

    def __init__(
        self, source: Captioned, tokenizer: Tokenizer, images: ImageSettings | ImageLoader, matching: float = 0.5
    ):
        self.source, self.tokenizer, self.loader, self.matching = source, tokenizer, image_loader(images), matching
        captions = [source.captions(i) for i in range(len(source))]
        self.owner = np.repeat(np.arange(len(captions)), [len(c) for c in captions])  # index of each example's image
        self._first = np.cumsum([0] + [len(c) for c in captions])
        self._lengths = np.array([len(text.split()) + 2 for c in captions for text in c])
        self._identities = np.full(len(captions), -1)  # computed on first use

    def __len__(self) -> int:
        return len(self.owner)

    def length(self, index: int) -> int:
        return int(self._lengths[index])

    def caption(self, index: int) -> str:
        """The caption of example `index`, truncated to MAX_TEXT_CHARS characters."""
        image = int(self.owner[index])
        return self.source.captions(image)[index - self._first[image]][:MAX_TEXT_CHARS]

    def examples_of(self, image: int) -> range:
        """The examples of an image: one for each of its captions."""
        return range(int(self._first[image]), int(self._first[image + 1]))

    def load(self, index: int, seed: int, step: int) -> LoadedPair:
        i, caption = int(self.owner[index]), self.caption(index)
        check_text(caption, self.source.where(i))
        image = self.load_image(i, index, seed, step)
        return LoadedPair(image, caption, self._replacement(i, index, seed, step), self._identity(i))

    def _identity(self, image: int) -> int:
        if self._identities[image] < 0:
            self._identities[image] = identity_of(self.loader, self.source, image)
        return int(self._identities[image])

    def load_image(self, image: int, index: int, seed: int, step: int) -> Any:
        """An image of the source, augmented with draws of example `index`. Raises BadSample."""
        return self.loader.load(self.source, image, partial(generator, seed, step, index, f"augment {image}"))

    def _replacement(self, image: int, index: int, seed: int, step: int) -> Any:
        """The image of another sample for a mismatched pair;

        None for a matched one, or if all images are the same.
        """
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
                    return self.load_image(other, index, seed, step)
            except BadSample:  # reported when it is drawn as a sample itself
                broken = True
        if broken:
            raise BadSample(self.source.where(image), "no readable image was drawn for a mismatched pair")
        return None

    def collate(self, loaded: list[LoadedPair], ids: Sequence[int], seed: int, step: int) -> Batch:
        matching = None
        if self.matching > 0:
            images = [x.image if x.matching_image is None else x.matching_image for x in loaded]
            matched = torch.tensor([x.matching_image is None for x in loaded])
            matching = Matching(self.loader.stack(images), matched)
        text = self.tokenizer.encode([x.caption for x in loaded])
        labels = {"image": torch.tensor([x.identity for x in loaded])}
        batch = Batch(seed, step, torch.tensor(ids), text=text, matching=matching, labels=labels)
        return with_images(batch, self.loader.stack([x.image for x in loaded]))


class QuestionExamples:
    """One example per question: VQA as classification over `answers`, which were normalised with `normalise`.

    With `decoded` a batch also has `Batch.answers`, all annotators' answers, for a decoder.

    Labels: ``targets`` float ``(b, len(answers))``, soft scores in [0, 1]; ``question`` int64 ``(b,)``, the question
    ids.
    """

    def __init__(
        self,
        source: Questioned,
        tokenizer: Tokenizer,
        images: ImageSettings | ImageLoader,
        answers: Sequence[str],
        normalise: Callable[[str], str],
        decoded: bool = False,
    ):
        self.source, self.tokenizer, self.loader, self.normalise = source, tokenizer, image_loader(images), normalise
        self.decoded = decoded
        self.class_of = {answer: i for i, answer in enumerate(answers)}

    def __len__(self) -> int:
        return len(self.source)

    def length(self, index: int) -> int:
        return (
            1  # batches are not grouped by length, which would put questions of one kind, and their answers, together
        )

    def load(self, index: int, seed: int, step: int) -> tuple[Any, Question]:
        question = self.source.question(index)
        check_text(question.text, self.source.where(index))
        if self.decoded and not answer_weights(question.answers, self.normalise):
            raise BadSample(self.source.where(index), "no answer to learn from: it is empty")
        return self.loader.load(self.source, question.image, partial(generator, seed, step, index, "augment")), question

    def collate(self, loaded: list[tuple[Any, Question]], ids: Sequence[int], seed: int, step: int) -> Batch:
        targets = torch.zeros(len(loaded), len(self.class_of))
        for row, (_, question) in zip(targets, loaded, strict=True):
            for answer, score in soft_scores(question.answers, self.normalise).items():
                if answer in self.class_of:
                    row[self.class_of[answer]] = score
        batch = Batch(
            seed,
            step,
            torch.tensor(ids),
            text=self.tokenizer.encode([q.text[:MAX_TEXT_CHARS] for _, q in loaded]),
            answers=self._answers([question for _, question in loaded]) if self.decoded else None,
            labels={"targets": targets, "question": torch.tensor([q.id for _, q in loaded])},
        )
        return with_images(batch, self.loader.stack([image for image, _ in loaded]))

    def _answers(self, questions: Sequence[Question]) -> AnswerTargets:
        """Each distinct answer of each question, with its share of the annotators."""
        weights = [answer_weights(question.answers, self.normalise) for question in questions]
        texts = [answer for answers in weights for answer in answers]
        question = torch.tensor([i for i, answers in enumerate(weights) for _ in answers])
        shares = torch.tensor([share for answers in weights for share in answers.values()])
        return AnswerTargets(self.tokenizer.encode(texts), question, shares)


def check_text(text: str, where: str) -> None:
    """Raises BadSample for a text that is empty or not valid Unicode."""
    if not text.strip():
        raise BadSample(where, "empty caption or question")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadSample(where, "text that is not valid Unicode (a lone surrogate)") from None


def readable(text: str) -> bool:
    """Whether `check_text` accepts the text."""
    try:
        check_text(text, "")
    except BadSample:
        return False
    return True


class TextExamples:
    """One example per caption, without its image."""

    def __init__(self, source: Captioned, tokenizer: Tokenizer):
        self.source, self.tokenizer = source, tokenizer
        self._captions = [(i, k) for i in range(len(source)) for k in range(len(source.captions(i)))]

    def __len__(self) -> int:
        return len(self._captions)

    def length(self, index: int) -> int:
        return len(self._text(index).split()) + 2

    def load(self, index: int, seed: int, step: int) -> str:
        text = self._text(index)
        check_text(text, self.source.where(self._captions[index][0]))
        return text

    def collate(self, loaded: list[str], ids: Sequence[int], seed: int, step: int) -> Batch:
        return Batch(seed, step, torch.tensor(ids), text=self.tokenizer.encode(loaded))

    def _text(self, index: int) -> str:
        image, number = self._captions[index]
        return self.source.captions(image)[number][:MAX_TEXT_CHARS]


class ImageExamples:
    """Every image of a source and its horizontal flip: examples 2i and 2i + 1.

    Args:
        source: the images.
        images: loader of pixels or of a CNN's feature map.
        names: keys of cached features, for `Batch.image_keys`; images may not be augmented then.
    """

    def __init__(self, source: Captioned, images: ImageSettings | ImageLoader, names: FeatureKeys | None = None):
        self.source, self.loader, self.names = source, image_loader(images), names

    def __len__(self) -> int:
        return 2 * len(self.source)

    def length(self, index: int) -> int:
        return 1

    def load(self, index: int, seed: int, step: int) -> tuple[np.ndarray, bytes]:
        image = self.loader.load(self.source, index // 2, partial(generator, seed, step, index, "augment"))
        name = b"" if self.names is None else self.names.of(self.source, index // 2)
        return np.ascontiguousarray(image[:, ::-1]) if index % 2 else image, name

    def collate(self, loaded: list[tuple[np.ndarray, bytes]], ids: Sequence[int], seed: int, step: int) -> Batch:
        images, names = zip(*loaded, strict=True)
        keys = None if self.names is None else ImageKeys.from_digests(names, [index % 2 == 1 for index in ids])
        return with_images(Batch(seed, step, torch.tensor(ids), image_keys=keys), self.loader.stack(images))
