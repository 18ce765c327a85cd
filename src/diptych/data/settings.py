"""What a data pipeline can be told. Plain values: recipes and the command line read this file without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageSettings:
    """How pictures become pixels. `shorter` is the shorter side in pixels; the longer is at most `longer_ratio` times it.

    With `square` every picture becomes ``shorter × shorter``, whatever its aspect (ViT). With `augment` RandAugment
    (2 operations of strength 9) is drawn anew for each (seed, step, sample).
    """

    shorter: int = 384
    longer_ratio: float = 1333 / 800
    patch: int = 32
    mean: float = 0.5
    std: float = 0.5
    augment: bool = False
    square: bool = False
