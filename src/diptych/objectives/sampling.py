"""The one place where objectives draw at random: which words and regions are hidden, which patches are kept, what
does not belong together.

Everything is keyed by (seed, step, sample id), or given from outside (`Given`), which golden tests do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.batch import Batch, Regions, Text
from diptych.modules.tokens import Tokens
from diptych.objectives.masking import (
    BlockMasking,
    HiddenRegions,
    MaskedText,
    Masking,
    RegionMasking,
    first_of,
    hidden_blocks,
    hide,
    mask,
    order_of,
    others,
)
from diptych.utils import rng


@dataclass(frozen=True)
class Hiding:
    """What is hidden of a pair that is read once for all objectives: regions (ViLBERT) or patches (BEiT-3), and words."""

    words: Masking
    image: RegionMasking | BlockMasking


@runtime_checkable
class Draws(Protocol):
    """Where an objective's random choices come from."""

    def masked(self, text: Text, masking: Masking) -> MaskedText:
        """The text with some of its words hidden."""
        ...

    def order(self, image: Tokens) -> Int[Tensor, "b n"]:
        """The place of each patch in a random order of its image's; what is no patch stands behind."""
        ...

    def kept(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        """Which image tokens stay, where at most `most` patches may."""
        ...

    def hidden_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        """Which patches of each image are hidden, on their canvas."""
        ...

    def negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """For each sample a candidate that does not belong to it, of the other `side` ("image" or "text"), in proportion to
        exp(`likeness`); −∞ where it would belong.
        """
        ...

    def hidden_regions(self, regions: Regions, masking: RegionMasking) -> HiddenRegions:
        """The regions with some of them hidden."""
        ...

    def other_regions(
        self, hidden: HiddenRegions, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        """For each hidden region, in order, others to be told from (see hiding.others)."""
        ...


@dataclass(frozen=True)
class Keyed:
    """Choices drawn for the samples of a batch, the same whenever and wherever they are drawn."""

    batch: Batch

    def uniform(self, stream: str, n: int) -> np.ndarray:
        """``(b, n)`` in [0, 1); `stream` names the use."""
        return rng.uniform(self.batch.seed, self.batch.step, self.batch.ids.cpu().numpy(), stream, n)

    def masked(self, text: Text, masking: Masking) -> MaskedText:
        return mask(text, masking, self.uniform)

    def order(self, image: Tokens) -> Int[Tensor, "b n"]:
        noise = torch.from_numpy(self.uniform("kept patches", image.real.shape[1])).float()
        return order_of(image, noise.to(image.real.device))

    def kept(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        """At most `most` patches of each image, drawn without replacement; class tokens are always kept."""
        return first_of(image, self.order(image), most)

    def hidden_regions(self, regions: Regions, masking: RegionMasking) -> HiddenRegions:
        return hide(regions, masking, self.uniform)

    def other_regions(
        self, hidden: HiddenRegions, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        return others(hidden, everyone, whose, first, number, self.uniform)

    def hidden_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        hidden = torch.zeros(len(extents), *grid, dtype=torch.bool)
        for canvas, sample, (rows, columns) in zip(hidden, self.batch.ids.tolist(), extents.tolist(), strict=True):
            random = rng.generator(self.batch.seed, self.batch.step, sample, "hidden patches")
            canvas[:rows, :columns] = torch.from_numpy(hidden_blocks(rows, columns, masking, random))
        return hidden.flatten(1).to(extents.device)

    def negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """By the Gumbel trick, which no likeness is too small for. Raises ValueError where nothing may be drawn."""
        if not (likeness > -torch.inf).any(1).all():
            raise ValueError(
                f"a sample of the batch has no {side} that is not its own: give it more, or other, samples"
            )
        drawn = torch.from_numpy(self.uniform(f"negative {side}", likeness.shape[1])).clamp(min=1e-300)
        return (likeness.double() - drawn.log().neg().log().to(likeness.device)).argmax(1)


@dataclass(frozen=True)
class Given:
    """Choices made elsewhere."""

    masked_text: MaskedText | None = None
    kept_patches: Bool[Tensor, "b n"] | None = None
    patch_noise: Float[Tensor, "b m"] | None = None  # of each image's patches, in raster order
    negative_images: Int[Tensor, " b"] | None = None
    negative_texts: Int[Tensor, " b"] | None = None
    masked_regions: HiddenRegions | None = None
    others: Int[Tensor, "k number"] | None = None
    masked_patches: Bool[Tensor, "b cells"] | None = None

    def masked(self, text: Text, masking: Masking) -> MaskedText:
        if self.masked_text is None:
            raise ValueError("masked words were asked for, but none were given")
        return self.masked_text

    def order(self, image: Tokens) -> Int[Tensor, "b n"]:
        if self.patch_noise is None:
            raise ValueError("an order of patches was asked for, but none was given")
        return order_of(image, self.patch_noise)

    def kept(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        if self.kept_patches is None:
            raise ValueError("kept patches were asked for, but none were given")
        return self.kept_patches

    def hidden_regions(self, regions: Regions, masking: RegionMasking) -> HiddenRegions:
        if self.masked_regions is None:
            raise ValueError("hidden regions were asked for, but none were given")
        return self.masked_regions

    def other_regions(
        self, hidden: HiddenRegions, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        if self.others is None:
            raise ValueError("other regions were asked for, but none were given")
        return self.others

    def hidden_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        if self.masked_patches is None:
            raise ValueError("hidden patches were asked for, but none were given")
        return self.masked_patches

    def negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        given = {"image": self.negative_images, "text": self.negative_texts}[side]
        if given is None:
            raise ValueError(f"negative {side}s were asked for, but none were given")
        return given
