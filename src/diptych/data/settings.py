"""What a data pipeline can be told. Plain values: recipes and the command line read this file without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Streaming:
    """Tars too many to index, read one after the other and dealt to `lanes`, which ranks share (see data.stream).

    With `lanes` 0 tars are indexed and visited in any order. The order follows from `lanes` and `buffer`, and not from ranks.
    """

    lanes: int = 0  # a multiple of ranks x micro-batches, and at most as many as there are tars
    buffer: int = 4096  # samples held to be shuffled, over all lanes


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
