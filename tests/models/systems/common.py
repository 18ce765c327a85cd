"""Parts of the battery's entries: sizes, batches, outputs of the models' methods, and the type of an entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.batch import AnswerTargets, Batch, Image, ImageKeys, Matching, Text
from diptych.encoders.efficientnet import FrozenCNN, TeacherFeatures
from diptych.modules.heads import GroundingHead
from diptych.modules.tokens import Tokens
from diptych.tasks.grounding import Grounding

PATCH, GRID = 8, (3, 4)
VOCABULARY, MASK, TEXT_LENGTH = 40, 4, 9
CLASSES, ANSWERS, FALSE = 5, 30, 3
SMALL: dict[str, Any] = dict(dim=32, depth=2, num_heads=4, mlp_dim=64, patch_size=PATCH, grid=GRID, dropout=0.0)


@dataclass(frozen=True)
class Job:
    """A training step of a model.

    Args:
        step: builds the step from the model.
        chance: its losses at chance level, in nats.
        prior: the loss of the best constant prediction on eight samples, where that is lower than chance.
        exempt: patterns of names of the parameters, and rows of embedding tables, without a gradient; and the reason.
        apart: whether each sample's loss depends on that sample only; ITC compares samples, so that the loss of a
            batch is not the mean of its parts.
        steps: optimizer steps until eight samples are overfitted.
    """

    step: Callable[[Any], nn.Module]
    chance: Mapping[str, float]
    prior: Mapping[str, float] = field(default_factory=dict)
    exempt: Mapping[str, str] = field(default_factory=dict)
    apart: bool = True
    steps: int = 100


@dataclass(frozen=True)
class Forward:
    """A call of the model's `forward` on a batch, and the composition of its methods that must give the same."""

    call: Callable[[Any, Batch], list[Tokens | Tensor]]
    composed: Callable[[Any, Batch], list[Tokens | Tensor]]


@dataclass(frozen=True)
class System:
    """A model of the battery.

    Args:
        small: builds it with all its parts at toy size.
        full: builds it at the published size.
        methods: the outputs of its methods on a batch, by name.
        forward: a call of its `forward`, and the composition of methods that equals it.
        jobs: its training steps, by name.
        least: a lower bound on the parameters of `full`.
    """

    small: Callable[[], nn.Module]
    full: Callable[[], nn.Module]
    methods: Mapping[str, Callable[[Any, Batch], list[Tokens | Tensor]]]
    forward: Forward
    jobs: Mapping[str, Job]
    least: float = 80e6


class Colours(FrozenCNN):
    """A teacher whose features are the mean colours of patches."""

    stride = PATCH

    def __init__(self) -> None: ...

    def __call__(self, image: Image, keys: ImageKeys | None = None) -> TeacherFeatures:
        grid = F.avg_pool2d(image.pixels, PATCH).permute(0, 2, 3, 1)
        classes = image.pixels.sum((2, 3)) / image.sizes.prod(1, keepdim=True)  # zero outside the image
        return TeacherFeatures(F.pad(grid, (0, 1280 - 3), value=0.1), F.pad(classes, (0, 1000 - 3)))


def encode_image(model, batch: Batch) -> list[Tokens | Tensor]:
    return [model.encode_image(batch.image)]


def encode_text(model, batch: Batch) -> list[Tokens | Tensor]:
    return [model.encode_text(batch.text)]


def classify(model, batch: Batch) -> list[Tokens | Tensor]:
    return [model.classify(batch.image)]


def fuse(model, batch: Batch) -> list[Tokens | Tensor]:
    pair = model.fuse(model.encode_text(batch.text), model.encode_image(batch.image))
    return [pair.text, pair.image, pair.pooled]


class GroundedPatches(nn.Module):
    """Grounding of one region, the whole image, to which every second text refers."""

    def __init__(self, model: Any):
        super().__init__()
        self.step = Grounding(model, GroundingHead(SMALL["dim"]))
        self.weights, self.chance_losses = self.step.weights, self.step.chance_losses

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.step.num_terms(batch)

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = torch.tensor([0.0, 0, 1, 1, 1]).expand(len(batch), 1, 5)
        labels = {"boxes": whole, "regions": (batch.ids % 2).float()[:, None]}
        return self.step(replace(batch, labels=batch.labels | labels), counts)


def call_on_image(model, batch: Batch) -> list[Tokens | Tensor]:
    return [model(batch.image)]


def call_on_pair(model, batch: Batch) -> list[Tokens | Tensor]:
    fused = model(batch.image, batch.text)
    return [fused.text, fused.image, fused.pooled]


def call_on_two_images(model, batch: Batch) -> list[Tokens | Tensor]:
    fused = model((batch.image, batch.image2), batch.text)
    return [fused.text, fused.image, fused.pooled]


CLASSIFIED = Forward(call_on_image, classify)
FUSED = Forward(call_on_pair, fuse)

LN2 = math.log(2)
ONE_OF_EIGHT = 8 * (math.log(8) / 8 - 7 / 8 * math.log(7 / 8))  # eight answers, each true once: binary entropy
TABLES = {
    r"words\.word\.weight\[\d+\]": "words that are not in the batch",
    r"words\.position\.weight\[8\]": "no text of the batch is that long",
    r"words\.segment\.weight\[1\]": "there is one sentence",
}
ONE_IMAGE = {r"modality\.weight\[2\]": "there is one image"}
UNPOOLED_PAIR = {r"pooler\.": "the tokens of patches are scored, not the pooled pair"}
ALL_ALIKE = {r"rank\.linear\.bias": "shifts all candidates alike: cross entropy is invariant"}


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(b: int, seed: int, patch_size: int = PATCH) -> Image:
    """Images of different sizes in whole patches, at least one and at most the grid; the largest extents occur."""
    rows, columns = (torch.randint(1, n + 1, (b,), generator=draw(seed + n)) for n in GRID)
    rows[0], columns[-1] = GRID
    sizes = patch_size * torch.stack([rows, columns], 1)
    pixels = torch.randn(b, 3, patch_size * GRID[0], patch_size * GRID[1], generator=draw(seed))
    for canvas, (h, w) in zip(pixels, sizes.tolist(), strict=True):
        canvas[:, h:], canvas[:, :, w:] = 0, 0
    return Image(pixels, sizes)


def texts(b: int, seed: int) -> Text:
    """Texts of [CLS] 1, words above 5, some of several tokens, [SEP] 2, padding 0."""
    lengths = torch.randint(4, TEXT_LENGTH, (b,), generator=draw(seed))
    lengths[0] = TEXT_LENGTH - 1
    position = torch.arange(TEXT_LENGTH - 1)
    real = position < lengths[:, None]
    ids = torch.randint(6, VOCABULARY, real.shape, generator=draw(seed))
    ids = torch.where(position == 0, 1, torch.where(position == lengths[:, None] - 1, 2, ids)) * real
    inner = real & (position > 0) & (position < lengths[:, None] - 1)
    begins = inner & ((torch.rand(real.shape, generator=draw(seed)) < 0.7) | (position == 1))
    return Text(ids, real, begins)


def answers(b: int, seed: int) -> AnswerTargets:
    """One answer for each question: [CLS], two words and [SEP]."""
    ids = torch.randint(6, VOCABULARY, (b, 4), generator=draw(seed))
    ids[:, 0], ids[:, 3] = 1, 2
    real = torch.ones_like(ids, dtype=torch.bool)
    return AnswerTargets(Text(ids, real, torch.zeros_like(real)), torch.arange(b), torch.ones(b))


def batch_of(b: int = 8, seed: int = 0, patch: int = PATCH) -> Batch:
    """A batch with all that any step reads; every second image of ITM is replaced by another."""
    own, other = images(b, seed, patch), images(b, seed + 2, patch)
    matched = torch.arange(b) % 2 == 0
    matching_image = Image(
        torch.where(matched[:, None, None, None], own.pixels, other.pixels),
        torch.where(matched[:, None], own.sizes, other.sizes),
    )
    return Batch(
        seed=3,
        step=1,
        ids=torch.arange(100, 100 + b),
        image=own,
        text=texts(b, seed + 1),
        matching=Matching(matching_image, matched),
        image2=images(b, seed + 3, patch),
        negative_texts=texts(b * FALSE, seed + 4),
        answers=answers(b, seed + 5),
        labels={
            "class": torch.arange(b) % CLASSES,
            "true": torch.arange(b) % 2,
            "targets": F.one_hot(torch.arange(b) % ANSWERS, ANSWERS).float(),
        },
    )


def padded(batch: Batch) -> Batch:
    """The same samples with more padding of images and texts."""

    def more_image(image: Image) -> Image:
        return Image(F.pad(image.pixels, (0, 2 * PATCH, 0, PATCH)), image.sizes)

    def more_text(text: Text) -> Text:
        assert text.word_start is not None
        return Text(F.pad(text.ids, (0, 1)), F.pad(text.mask, (0, 1)), F.pad(text.word_start, (0, 1)))

    assert batch.image and batch.text and batch.matching and batch.negative_texts and isinstance(batch.image2, Image)
    assert batch.answers is not None
    return replace(
        batch,
        image=more_image(batch.image),
        text=more_text(batch.text),
        matching=Matching(more_image(batch.matching.image), batch.matching.matched),
        image2=more_image(batch.image2),
        negative_texts=more_text(batch.negative_texts),
        answers=replace(batch.answers, text=more_text(batch.answers.text)),
    )


def rows(batch: Batch, chosen: Tensor) -> Batch:
    """The `chosen` samples of a batch, with their labels and negative texts."""
    assert batch.image and batch.text and batch.matching and batch.image2 and batch.negative_texts and batch.answers
    falses = (chosen[:, None] * FALSE + torch.arange(FALSE)).flatten()
    return replace(
        batch,
        ids=batch.ids[chosen],
        image=batch.image[chosen],
        text=batch.text[chosen],
        matching=Matching(batch.matching.image[chosen], batch.matching.matched[chosen]),
        image2=batch.image2[chosen],
        negative_texts=batch.negative_texts[falses],
        answers=AnswerTargets(batch.answers.text[chosen], torch.arange(len(chosen)), batch.answers.weights[chosen]),
        labels={name: label[chosen] for name, label in batch.labels.items()},
    )
