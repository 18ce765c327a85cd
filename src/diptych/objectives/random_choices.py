"""All random choices of the objectives: masked words, regions and patches, kept patches, negatives.

They are drawn from numbers keyed by (seed, step, sample id) (`KeyedChoices`), or fixed by the caller (`FixedChoices`),
as in comparisons with official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.batch import Batch, Regions, Text
from diptych.config.objectives import BlockMasking, RegionMasking
from diptych.modules.tokens import Tokens
from diptych.objectives.masking import (
    MaskedRegionBatch,
    MaskedText,
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
    """Masking of both modalities of a pair: of its words, and of its regions (ViLBERT) or patches (BEiT-3)."""

    words: WordMasking
    image: RegionMasking | BlockMasking


@runtime_checkable
class RandomChoices(Protocol):
    """The source of an objective's random choices."""

    def mask_text(self, text: Text, masking: WordMasking) -> MaskedText:
        """The text with some of its words masked."""
        ...

    def order_patches(self, image: Tokens) -> Int[Tensor, "b n"]:
        """The rank of each patch in a random order of its image's patches; other tokens rank last."""
        ...

    def keep_patches(self, image: Tokens, max_patches: int) -> Bool[Tensor, "b n"]:
        """The mask of image tokens to keep, with at most `max_patches` patches per image."""
        ...

    def mask_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        """The mask of masked patches, on the batch's patch grid."""
        ...

    def sample_negatives(self, side: str, log_weights: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """For each sample the index of a negative of modality `side` ("image" or "text").

        Sampled in proportion to exp(`log_weights`), which are −∞ at positives.
        """
        ...

    def mask_regions(self, regions: Regions, masking: RegionMasking) -> MaskedRegionBatch:
        """The regions with some of them masked."""
        ...

    def sample_regions(
        self, masked: MaskedRegionBatch, regions: Regions, ids: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        """Negative regions for each masked region (see `masking.negative_regions`)."""
        ...


@dataclass(frozen=True)
class KeyedChoices:
    """Choices drawn for the samples of a batch, the same in every process and at every call."""

    batch: Batch

    def uniform(self, stream: str, n: int) -> np.ndarray:
        """Random numbers ``(b, n)`` in [0, 1); `stream` names their use."""
        return rng.uniform(self.batch.seed, self.batch.step, self.batch.ids.cpu().numpy(), stream, n)

    def mask_text(self, text: Text, masking: WordMasking) -> MaskedText:
        return mask_words(text, masking, self.uniform)

    def order_patches(self, image: Tokens) -> Int[Tensor, "b n"]:
        noise = torch.from_numpy(self.uniform("kept patches", image.mask.shape[1])).float()
        return patch_order(image, noise.to(image.mask.device))

    def keep_patches(self, image: Tokens, max_patches: int) -> Bool[Tensor, "b n"]:
        """The mask of at most `max_patches` patches per image, drawn without replacement, and of class tokens."""
        return first_patches(image, self.order_patches(image), max_patches)

    def mask_regions(self, regions: Regions, masking: RegionMasking) -> MaskedRegionBatch:
        return mask_regions(regions, masking, self.uniform)

    def sample_regions(
        self, masked: MaskedRegionBatch, regions: Regions, ids: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        return negative_regions(masked, regions, ids, first, number, self.uniform)

    def mask_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        masked = torch.zeros(len(extents), *grid, dtype=torch.bool)
        for mask, sample, (rows, columns) in zip(masked, self.batch.ids.tolist(), extents.tolist(), strict=True):
            random = rng.generator(self.batch.seed, self.batch.step, sample, "hidden patches")
            mask[:rows, :columns] = torch.from_numpy(block_mask(rows, columns, masking, random))
        return masked.flatten(1).to(extents.device)

    def sample_negatives(self, side: str, log_weights: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        """Sampled by the Gumbel-max trick, which underflows for no weight. Raises ValueError without a negative."""
        if not (log_weights > -torch.inf).any(1).all():
            raise ValueError(
                f"a sample of the batch has no negative {side}, only positives: use a larger batch, or more varied data"
            )
        uniform = torch.from_numpy(self.uniform(f"negative {side}", log_weights.shape[1])).clamp(min=1e-300)
        return (log_weights.double() - uniform.log().neg().log().to(log_weights.device)).argmax(1)


@dataclass(frozen=True)
class FixedChoices:
    """Choices fixed by the caller. A method raises ValueError if its field is None."""

    masked_text: MaskedText | None = None
    kept_patches: Bool[Tensor, "b n"] | None = None
    patch_noise: Float[Tensor, "b m"] | None = None  # per patch of each image, in raster order
    negative_images: Int[Tensor, " b"] | None = None
    negative_texts: Int[Tensor, " b"] | None = None
    masked_regions: MaskedRegionBatch | None = None
    others: Int[Tensor, "k number"] | None = None
    masked_patches: Bool[Tensor, "b cells"] | None = None

    def mask_text(self, text: Text, masking: WordMasking) -> MaskedText:
        if self.masked_text is None:
            raise ValueError("FixedChoices has no masked_text, which the objective needs")
        return self.masked_text

    def order_patches(self, image: Tokens) -> Int[Tensor, "b n"]:
        if self.patch_noise is None:
            raise ValueError("FixedChoices has no patch_noise, which the objective needs")
        return patch_order(image, self.patch_noise)

    def keep_patches(self, image: Tokens, max_patches: int) -> Bool[Tensor, "b n"]:
        if self.kept_patches is None:
            raise ValueError("FixedChoices has no kept_patches, which the objective needs")
        return self.kept_patches

    def mask_regions(self, regions: Regions, masking: RegionMasking) -> MaskedRegionBatch:
        if self.masked_regions is None:
            raise ValueError("FixedChoices has no masked_regions, which the objective needs")
        return self.masked_regions

    def sample_regions(
        self, masked: MaskedRegionBatch, regions: Regions, ids: Int[Tensor, " all"], first: int, number: int
    ) -> Int[Tensor, "k number"]:
        if self.others is None:
            raise ValueError("FixedChoices has no others (negative regions), which the objective needs")
        return self.others

    def mask_patches(
        self, extents: Int[Tensor, "b 2"], grid: tuple[int, int], masking: BlockMasking
    ) -> Bool[Tensor, "b cells"]:
        if self.masked_patches is None:
            raise ValueError("FixedChoices has no masked_patches, which the objective needs")
        return self.masked_patches

    def sample_negatives(self, side: str, log_weights: Float[Tensor, "b m"]) -> Int[Tensor, " b"]:
        negatives = {"image": self.negative_images, "text": self.negative_texts}[side]
        if negatives is None:
            raise ValueError(f"FixedChoices has no negative_{side}s, which the objective needs")
        return negatives
