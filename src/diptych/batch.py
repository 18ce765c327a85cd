"""What a model is given: texts, images, and the batch that a training step reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from diptych.utils.device import DeviceMixin


@dataclass(frozen=True)
class Text(DeviceMixin):
    """A batch of token ids, padded on the right.

    `begins` is True at the first piece of each word and False inside words, at special tokens and at pads: it is what
    whole-word masking needs to know. None where the tokenizer could not say. `task`: which of its tasks a model is asked
    for, where it has one token for each (12-in-1).
    """

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    word_start: Bool[Tensor, "b n"] | None = None
    task: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Tensor | slice) -> Text:
        begins, task = (None if x is None else x[rows] for x in (self.word_start, self.task))
        return Text(self.ids[rows], self.mask[rows], begins, task)


@dataclass(frozen=True)
class Image(DeviceMixin):
    """A batch of images of any sizes: each lies top-left in a zero canvas; `sizes` are its (height, width) in pixels."""

    pixels: Float[Tensor, "b c h w"]
    sizes: Int[Tensor, "b 2"]

    @classmethod
    def from_full(cls, pixels: Float[Tensor, "b c h w"]) -> Image:
        """Images that all fill their canvas."""
        b, _, h, w = pixels.shape
        return cls(pixels, torch.tensor([[h, w]], device=pixels.device).expand(b, 2))

    @classmethod
    def from_padded(cls, pixels: Float[Tensor, "b c h w"]) -> Image:
        """Sizes read off the canvas, as ViLT does: a pixel whose channels sum to exactly 0 is padding.

        Height is the extent of the first column and width that of the first row. Unlike ViLT's own count a mid-grey
        pixel inside the picture does not shorten it.
        """
        inked = pixels.sum(1) != 0
        heights = _extent(inked[:, :, 0])
        widths = _extent(inked[:, 0, :])
        return cls(pixels, torch.stack([heights, widths], 1))

    def extents(self, patch_size: int) -> Int[Tensor, "b 2"]:
        """Rows and columns of patches. What is a CNN's map in the place of three colours has one for each pixel."""
        return (self.sizes + patch_size - 1) // patch_size if self.pixels.shape[1] == 3 else self.sizes

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor | slice) -> Image:
        return Image(self.pixels[rows], self.sizes[rows])


@dataclass(frozen=True)
class Regions(DeviceMixin):
    """What a detector saw in each image: features and boxes of its regions, padded behind.

    `boxes` are x1, y1, x2, y2 as shares of width and height, and the share of the image's area (ViLBERT, section 3.2).
    `classes`: the detector's class probabilities, where they are known (the target of masked regions). `whole`: whether
    the first region stands for the whole image, as ViLBERT wants it.
    """

    features: Float[Tensor, "b n f"]
    boxes: Float[Tensor, "b n 5"]
    mask: Bool[Tensor, "b n"]
    classes: Float[Tensor, "b n c"] | None = None
    has_whole_image: bool = False

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Tensor | slice) -> Regions:
        classes = None if self.classes is None else self.classes[rows]
        return Regions(self.features[rows], self.boxes[rows], self.mask[rows], classes, self.has_whole_image)

    @property
    def detected(self) -> Bool[Tensor, "b n"]:
        """Which regions a detector saw: the real ones but the whole image."""
        if not self.has_whole_image:
            return self.mask
        return self.mask & (torch.arange(self.mask.shape[1], device=self.mask.device) > 0)

    def with_whole_image(self) -> Regions:
        """The whole image in front: the mean of its regions' features, the box of all of it, and no class."""
        if self.has_whole_image:
            return self
        b, device = len(self), self.features.device
        box = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0], device=device).expand(b, 1, 5)
        classes = None if self.classes is None else F.pad(self.classes, (0, 0, 1, 0))
        return Regions(
            torch.cat([masked_mean(self.features, self.mask)[:, None], self.features], 1),
            torch.cat([box, self.boxes], 1),
            F.pad(self.mask, (1, 0), value=True),
            classes,
            has_whole_image=True,
        )


def masked_mean(features: Float[Tensor, "b n f"], which: Bool[Tensor, "b n"]) -> Float[Tensor, "b f"]:
    """The mean over some regions of each image; nought where there are none."""
    return (features * which[:, :, None]).sum(1) / which.sum(1, keepdim=True).clamp(min=1)


def _extent(inked: Bool[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """One past the last True of each row."""
    places = torch.arange(1, inked.shape[1] + 1, device=inked.device)
    return (inked * places).amax(1)


@dataclass(frozen=True)
class Matching(DeviceMixin):
    """What image-text matching is asked about: the text of each sample beside what is `shown`, its own where `matched`."""

    visual: Image | Regions
    matched: Bool[Tensor, " b"]

    @property
    def image(self) -> Image:
        """The pictures. Raises ValueError where regions are shown in their place."""
        if not isinstance(self.visual, Image):
            raise ValueError("this batch shows regions, not pictures")
        return self.visual


@dataclass(frozen=True)
class AnswerTargets(DeviceMixin):
    """What people answered to a batch of questions, question after question: each answer once, with its weight."""

    text: Text
    question: Int[Tensor, " a"]  # which of the batch's questions each answers
    weights: Float[Tensor, " a"]


@dataclass(frozen=True)
class ImageKeys(DeviceMixin):
    """What the pictures of a batch are known by (store.digest): what was made of one is found again however it comes.
    `mirrored`: which come as mirror images of what is known so.
    """

    keys: UInt8[Tensor, "b 20"]
    mirrored: Bool[Tensor, " b"]

    @classmethod
    def from_digests(cls, names: Sequence[bytes], mirrored: Sequence[bool]) -> ImageKeys:
        """Names of 20 bytes."""
        return cls(torch.tensor([list(name) for name in names], dtype=torch.uint8), torch.tensor(mirrored))

    def items(self) -> Iterator[tuple[bytes, bool]]:
        """The name of each picture, and whether it comes mirrored."""
        return zip(map(bytes, self.keys.tolist()), self.mirrored.tolist(), strict=True)


@dataclass(frozen=True)
class Batch(DeviceMixin):
    """What a training step is given. `seed`, `step` and `ids` key every random draw made for it (see keyed.py).

    `ids` are stable names of the samples: the same on every rank, in every epoch. `labels` holds what a task needs
    beside image and text (answers' soft targets, class indices), each with b rows; of pairs "image", a number for each image,
    0 or more, by which its captions are known to belong together.
    """

    seed: int
    step: int
    ids: Int[Tensor, " b"]
    image: Image | None = None
    text: Text | None = None
    matching: Matching | None = None
    regions: Regions | None = None  # in place of an image, for models of regions
    image2: Image | Regions | None = None  # the right-hand image, where a sample has two
    negative_texts: Text | None = None  # texts that do not belong: as many for each sample, sample after sample
    answers: AnswerTargets | None = None  # to the questions that `text` holds
    labels: dict[str, Tensor] = field(default_factory=dict)
    task: str = ""  # which task the batch is of, for a step that has several
    image_keys: ImageKeys | None = (
        None  # what the pictures are known by, where a frozen network's sight of them is kept
    )

    def __len__(self) -> int:
        return len(self.ids)
