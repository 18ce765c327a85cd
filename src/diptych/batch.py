"""Model inputs: texts, images, detected regions, and the batch of a training step."""

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

    `word_start`: True at the first subword token of each word, False inside words, at special tokens and at padding
    (for whole-word masking); None if the tokenizer does not give word boundaries. `task`: the index of each sample's
    task, for models with a task token (12-in-1).
    """

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    word_start: Bool[Tensor, "b n"] | None = None
    task: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def check(self) -> None:
        """Raises ValueError for no texts or no tokens, or a mask of another shape. Reads shapes only."""
        if self.ids.dim() != 2 or 0 in self.ids.shape or self.mask.shape != self.ids.shape:
            raise ValueError(
                "expected token ids and a mask of shape (texts, tokens), at least one of each, got ids of shape "
                f"{tuple(self.ids.shape)} and a mask of shape {tuple(self.mask.shape)}: encode texts with the run's "
                "tokenizer, and leave out empty batches"
            )

    def __getitem__(self, rows: Tensor | slice) -> Text:
        word_start, task = (None if x is None else x[rows] for x in (self.word_start, self.task))
        return Text(self.ids[rows], self.mask[rows], word_start, task)


@dataclass(frozen=True)
class Image(DeviceMixin):
    """A batch of images of any sizes, each zero-padded at the right and bottom; `sizes`: (height, width) in pixels."""

    pixels: Float[Tensor, "b c h w"]
    sizes: Int[Tensor, "b 2"]

    @classmethod
    def from_full(cls, pixels: Float[Tensor, "b c h w"]) -> Image:
        """Images without padding."""
        b, _, h, w = pixels.shape
        return cls(pixels, torch.tensor([[h, w]], device=pixels.device).expand(b, 2))

    @classmethod
    def from_padded(cls, pixels: Float[Tensor, "b c h w"]) -> Image:
        """Sizes inferred from zero padding, as in ViLT: a pixel whose channels sum to exactly 0 is padding.

        Height is the extent of the first column and width that of the first row. Differs: in ViLT's official code a
        mid-grey pixel inside the image shortens it; here it does not.
        """
        nonzero = pixels.sum(1) != 0
        heights = _extent(nonzero[:, :, 0])
        widths = _extent(nonzero[:, 0, :])
        return cls(pixels, torch.stack([heights, widths], 1))

    def extents(self, patch_size: int) -> Int[Tensor, "b 2"]:
        """Rows and columns of patches. Where `pixels` is a CNN's feature map (not 3 channels), one per cell."""
        return (self.sizes + patch_size - 1) // patch_size if self.pixels.shape[1] == 3 else self.sizes

    def __len__(self) -> int:
        return len(self.pixels)

    def check(self, patch_size: int = 1, channels: int | None = None) -> None:
        """Raises ValueError for no images, or pixels that are not whole patches. Reads shapes only.

        `channels`: of `pixels`; None: any, as of a CNN's feature maps.
        """
        if (
            self.pixels.dim() != 4
            or 0 in self.pixels.shape
            or self.pixels.shape[1] != (channels or self.pixels.shape[1])
        ):
            raise ValueError(
                f"expected pixels of shape (images, {channels or 'channels'}, height, width), at least one image, got "
                f"{tuple(self.pixels.shape)}: stack images to one batch, and leave out empty batches"
            )
        if self.sizes.shape != (len(self.pixels), 2):
            raise ValueError(
                f"expected sizes of shape ({len(self.pixels)}, 2), one (height, width) for each image, got "
                f"{tuple(self.sizes.shape)}: use Image.from_full for images without padding"
            )
        height, width = self.pixels.shape[2:]
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"expected pixels whose height and width are multiples of the patch size, {patch_size}, got "
                f"{height} x {width}: pad them with zeros at the right and bottom, and keep `sizes`"
            )

    def __getitem__(self, rows: Tensor | slice) -> Image:
        return Image(self.pixels[rows], self.sizes[rows])


@dataclass(frozen=True)
class Regions(DeviceMixin):
    """Detected regions of each image: features and boxes, padded on the right.

    `boxes`: x1, y1, x2, y2 as fractions of width and height, and the fraction of the image's area (ViLBERT, section
    3.2).
    `classes`: the detector's class probabilities, if they are known (the target of masked region modeling).
    `has_whole_image`: whether the first region stands for the whole image, as in ViLBERT.
    """

    features: Float[Tensor, "b n f"]
    boxes: Float[Tensor, "b n 5"]
    mask: Bool[Tensor, "b n"]
    classes: Float[Tensor, "b n c"] | None = None
    has_whole_image: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for an image without regions, which has no similarity. On a CPU only, where data are made:
        elsewhere reading the mask would wait for the device.
        """
        if self.mask.device.type == "cpu" and not bool(self.mask.any(1).all()):
            empty = (~self.mask.any(1)).nonzero().flatten().tolist()
            raise ValueError(
                f"expected at least one region for each image, got none for the images with indices {empty}: leave "
                "these images out, or add a region for the whole image"
            )

    def __len__(self) -> int:
        return len(self.features)

    def check(self, feature_dim: int) -> None:
        """Raises ValueError for no images or regions, or features of another width. Reads shapes only."""
        b, n = self.features.shape[:2]
        if self.features.shape != (b, n, feature_dim) or not b or not n:
            raise ValueError(
                f"expected region features of shape (images, regions, {feature_dim}), at least one of each, got "
                f"{tuple(self.features.shape)}: use the detector that the model was made for (model.feature_dim), and "
                "leave out empty batches"
            )
        if self.boxes.shape != (b, n, 5) or self.mask.shape != (b, n):
            raise ValueError(
                f"expected boxes of shape ({b}, {n}, 5) and a mask of shape ({b}, {n}), got "
                f"{tuple(self.boxes.shape)} and {tuple(self.mask.shape)}: a row for each region"
            )

    def __getitem__(self, rows: Tensor | slice) -> Regions:
        classes = None if self.classes is None else self.classes[rows]
        return Regions(self.features[rows], self.boxes[rows], self.mask[rows], classes, self.has_whole_image)

    @property
    def detected(self) -> Bool[Tensor, "b n"]:
        """Mask of detected regions: without padding and the whole-image region."""
        if not self.has_whole_image:
            return self.mask
        return self.mask & (torch.arange(self.mask.shape[1], device=self.mask.device) > 0)

    def with_whole_image(self) -> Regions:
        """Regions with a first one for the whole image: the mean feature, the full box and zero class scores."""
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
    """The mean of each sample's features where `which` is True; zero if none is."""
    return (features * which[:, :, None]).sum(1) / which.sum(1, keepdim=True).clamp(min=1)


def _extent(nonzero: Bool[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """One past the last True of each row."""
    ends = torch.arange(1, nonzero.shape[1] + 1, device=nonzero.device)
    return (nonzero * ends).amax(1)


@dataclass(frozen=True)
class Matching(DeviceMixin):
    """The images of image-text matching: each sample's text is paired with `visual`, its own image where `matched`."""

    visual: Image | Regions
    matched: Bool[Tensor, " b"]

    @property
    def image(self) -> Image:
        """The images. Raises ValueError if the batch contains detected regions."""
        if not isinstance(self.visual, Image):
            raise ValueError("expected images to match, got detected regions: use data with images")
        return self.visual


@dataclass(frozen=True)
class AnswerTargets(DeviceMixin):
    """Annotators' answers to a batch of questions, in the order of questions: each distinct answer with its weight."""

    text: Text
    question: Int[Tensor, " a"]  # index of each answer's question in the batch
    weights: Float[Tensor, " a"]


@dataclass(frozen=True)
class ImageKeys(DeviceMixin):
    """Cache keys of a batch's images (`utils.cache.digest`), under which their frozen features are stored.

    `mirrored`: which images are horizontal flips of the image that the key is of.
    """

    keys: UInt8[Tensor, "b 20"]
    mirrored: Bool[Tensor, " b"]

    @classmethod
    def from_digests(cls, digests: Sequence[bytes], mirrored: Sequence[bool]) -> ImageKeys:
        """Keys from digests of 20 bytes."""
        return cls(torch.tensor([list(digest) for digest in digests], dtype=torch.uint8), torch.tensor(mirrored))

    def items(self) -> Iterator[tuple[bytes, bool]]:
        """Each image's key, and whether the image is flipped."""
        return zip(map(bytes, self.keys.tolist()), self.mirrored.tolist(), strict=True)


@dataclass(frozen=True)
class Batch(DeviceMixin):
    """The input of one training step. `seed`, `step` and `ids` key every random draw for it (see utils/rng.py).

    `ids` are stable sample ids: the same on every rank, in every epoch. `labels` contains a task's further targets
    (soft answer scores, class indices), each with b rows; for image-text pairs, "image" is a non-negative image id that
    all captions of one image share.
    """

    seed: int
    step: int
    ids: Int[Tensor, " b"]
    image: Image | None = None
    text: Text | None = None
    matching: Matching | None = None
    regions: Regions | None = None  # instead of an image, for models of regions
    image2: Image | Regions | None = None  # the right-hand image, if a sample has two
    negative_texts: Text | None = None  # mismatched texts: equally many per sample, in the order of samples
    negative_images: Image | Regions | None = None  # mismatched images, likewise
    answers: AnswerTargets | None = None  # of the questions in `text`
    labels: dict[str, Tensor] = field(default_factory=dict)
    task: str = ""  # name of the batch's task, in multitask training
    image_keys: ImageKeys | None = None  # cache keys of the images, if frozen features are cached

    def __len__(self) -> int:
        return len(self.ids)
