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
    MaskedRegionBatch,
    MaskedText,
    RegionMasking,
    WordMasking,
    block_mask,
    first_patches,
    mask_regions,
    mask_words,
    negative_regions,
    patch_order,
)
from diptych.utils import rng


@dataclass(frozen=True)
class PairMasking:
    """What is hidden of a pair that is read once for all objectives: regions (ViLBERT) or patches (BEiT-3), and words."""

    words: WordMasking
    image: RegionMasking | BlockMasking


@runtime_checkable
class RandomChoices(Protocol):
    """Where an objective's random choices come from."""

    def mask_text(self, text: Text, masking: WordMasking) -> MaskedText:
        """The text with some of its words hidden."""
        ...

    def order_patches(self, image: Tokens) -> Int[Tensor, "b n"]:
        """The place of each patch in a random order of its image's; what is no patch stands behind."""
        ...

    def keep_patches(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        """Which image tokens stay, where at most `most` patches may."""
        ...

    def mask_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        """Which patches of each image are hidden, on their canvas."""
        ...

    def sample_negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """For each sample a candidate that does not belong to it, of the other `side` ("image" or "text"), in proportion to
        exp(`likeness`); −∞ where it would belong.
        """
        ...

    def mask_regions(self, regions: Regions, masking: RegionMasking) -> MaskedRegionBatch:
        """The regions with some of them hidden."""
        ...

    def sample_regions(
        self, hidden: MaskedRegionBatch, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        """For each hidden region, in order, others to be told from (see hiding.others)."""
        ...


@dataclass(frozen=True)
class KeyedChoices:
    """Choices drawn for the samples of a batch, the same whenever and wherever they are drawn."""

    batch: Batch

    def uniform(self, stream: str, n: int) -> np.ndarray:
        """``(b, n)`` in [0, 1); `stream` names the use."""
        return rng.uniform(self.batch.seed, self.batch.step, self.batch.ids.cpu().numpy(), stream, n)

    def mask_text(self, text: Text, masking: WordMasking) -> MaskedText:
        return mask_words(text, masking, self.uniform)

    def order_patches(self, image: Tokens) -> Int[Tensor, "b n"]:
        noise = torch.from_numpy(self.uniform("kept patches", image.mask.shape[1])).float()
        return patch_order(image, noise.to(image.mask.device))

    def keep_patches(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        """At most `most` patches of each image, drawn without replacement; class tokens are always kept."""
        return first_patches(image, self.order_patches(image), most)

    def mask_regions(self, regions: Regions, masking: RegionMasking) -> MaskedRegionBatch:
        return mask_regions(regions, masking, self.uniform)

    def sample_regions(
        self, hidden: MaskedRegionBatch, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        return negative_regions(hidden, everyone, whose, first, number, self.uniform)

    def mask_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        hidden = torch.zeros(len(extents), *grid, dtype=torch.bool)
        for canvas, sample, (rows, columns) in zip(hidden, self.batch.ids.tolist(), extents.tolist(), strict=True):
            random = rng.generator(self.batch.seed, self.batch.step, sample, "hidden patches")
            canvas[:rows, :columns] = torch.from_numpy(block_mask(rows, columns, masking, random))
        return hidden.flatten(1).to(extents.device)

    def sample_negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """By the Gumbel trick, which no likeness is too small for. Raises ValueError where nothing may be drawn."""
        if not (likeness > -torch.inf).any(1).all():
            raise ValueError(
                f"a sample of the batch has no {side} that is not its own: give it more, or other, samples"
            )
        drawn = torch.from_numpy(self.uniform(f"negative {side}", likeness.shape[1])).clamp(min=1e-300)
        return (likeness.double() - drawn.log().neg().log().to(likeness.device)).argmax(1)


@dataclass(frozen=True)
class FixedChoices:
    """Choices made elsewhere."""

    masked_text: MaskedText | None = None
    kept_patches: Bool[Tensor, "b n"] | None = None
    patch_noise: Float[Tensor, "b m"] | None = None  # of each image's patches, in raster order
    negative_images: Int[Tensor, " b"] | None = None
    negative_texts: Int[Tensor, " b"] | None = None
    masked_regions: MaskedRegionBatch | None = None
    others: Int[Tensor, "k number"] | None = None
    masked_patches: Bool[Tensor, "b cells"] | None = None

    def mask_text(self, text: Text, masking: WordMasking) -> MaskedText:
        if self.masked_text is None:
            raise ValueError("masked words were asked for, but none were given")
        return self.masked_text

    def order_patches(self, image: Tokens) -> Int[Tensor, "b n"]:
        if self.patch_noise is None:
            raise ValueError("an order of patches was asked for, but none was given")
        return patch_order(image, self.patch_noise)

    def keep_patches(self, image: Tokens, most: int) -> Bool[Tensor, "b n"]:
        if self.kept_patches is None:
            raise ValueError("kept patches were asked for, but none were given")
        return self.kept_patches

    def mask_regions(self, regions: Regions, masking: RegionMasking) -> MaskedRegionBatch:
        if self.masked_regions is None:
            raise ValueError("hidden regions were asked for, but none were given")
        return self.masked_regions

    def sample_regions(
        self, hidden: MaskedRegionBatch, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        if self.others is None:
            raise ValueError("other regions were asked for, but none were given")
        return self.others

    def mask_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        if self.masked_patches is None:
            raise ValueError("hidden patches were asked for, but none were given")
        return self.masked_patches

    def sample_negatives(self, side: str, likeness: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        given = {"image": self.negative_images, "text": self.negative_texts}[side]
        if given is None:
            raise ValueError(f"negative {side}s were asked for, but none were given")
        return given
