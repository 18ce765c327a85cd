"""What a data pipeline can be told. Plain values: recipes and the command line read this file without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from diptych.config.validation import PatchSize, Pixels, PixelsOrNone, Range, require_at_most, settings


@settings("streaming")
class Streaming:
    """Tars too many to index, read one after the other and dealt to `lanes`, which ranks share (see data.stream).

    With `lanes` 0 tars are indexed and visited in any order. The order follows from `lanes` and `buffer`, and not from ranks.
    """

    lanes: Annotated[int, Range(0, 2**16)] = (
        0  # a multiple of ranks x micro-batches, and at most as many as there are tars
    )
    buffer: Annotated[int, Range(1, 2**24)] = (
        4096  # samples held to be shuffled, over all lanes; fewer where they are large
    )


Channels = tuple[float, float, float]
"""One number each for red, green and blue."""
Mean = Annotated[float, Range(-100, 100)]
Deviation = Annotated[float, Range(0, 100, "low")]

HALF: Channels = (0.5, 0.5, 0.5)
"""As mean and as std: pixels lie in [-1, 1] (ViT, ViLT, VLMo, BEiT-3)."""
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's own data (the official code; ALBEF's, BLIP's and open_clip's repeat them)."""
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
"""Of ImageNet's pictures (the official code of MAE and CrossViT; BEiT-3's where it classifies)."""


@settings("images")
class ImageSettings:
    """How pictures become pixels. `shorter` is the shorter side in pixels; the longer is at most `longer_ratio` times it.

    Values from 0 to 1 become ``(x − mean) / std``, each channel by its own; frozen networks that look at pictures have
    their own mean and std, whatever is set here.

    With `square` every picture becomes ``shorter × shorter``, whatever its aspect (ViT); `wide` is its width where that is
    not its height. With `crop` the shorter side is resized to `shorter` and a square of `crop` pixels is cut from the centre
    (CLIP). With `augment` RandAugment (2 operations of strength 9) is drawn anew for each (seed, step, sample).
    """

    shorter_side: Pixels = 384
    longer_ratio: Annotated[float, Range(1, 10)] = 1333 / 800
    patch_size: PatchSize = 32
    mean: tuple[Mean, Mean, Mean] = HALF
    std: tuple[Deviation, Deviation, Deviation] = HALF
    augment: bool = False
    square: bool = False
    square_width: PixelsOrNone = 0
    crop: PixelsOrNone = 0
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bicubic"  # Pillow's filters

    def __post_init__(self) -> None:
        require_at_most(self, "images", ("crop", "shorter_side"))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of every picture; None where they follow from each picture's shape."""
        if self.crop:
            return self.crop, self.crop
        return (self.shorter_side, self.square_width or self.shorter_side) if self.square else None

    @property
    def mean_std(self) -> tuple[Channels, Channels]:
        """Mean and std."""
        return self.mean, self.std
