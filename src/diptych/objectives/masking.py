"""Masking of patches (in blocks), detected regions and words, and random subsets of patches.

The functions here take their random numbers as arguments; objectives/random_choices.py draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.batch import Regions, Text, masked_mean
from diptych.config.objectives import BlockMasking, RegionMasking
from diptych.modules.tokens import Tokens

TRIES = 10  # rectangles that may fail in a row before the rest is masked patch by patch


def block_mask(rows: int, columns: int, masking: BlockMasking, random: np.random.Generator) -> np.ndarray:
    """The mask (rows, columns) of masked patches: exactly `rate` of them, rounded, at least one.

    Differs: the official code stops when no further rectangle fits, so that the number varies; here the last few
    patches are drawn one by one. `min_block` is bounded by the number yet to mask, so that small images get blocks too.
    """
    masked = np.zeros((rows, columns), dtype=bool)
    target = max(1, round(masking.rate * rows * columns))
    tries = 0
    while (left := target - int(masked.sum())) > 0 and tries < TRIES:
        area = random.uniform(min(masking.min_block, left), left)
        aspect = math.exp(random.uniform(math.log(masking.aspect), -math.log(masking.aspect)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        tries += 1
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        y, x = random.integers(rows - height + 1), random.integers(columns - width + 1)
        with_block = masked.copy()
        with_block[y : y + height, x : x + width] = True
        if 0 < with_block.sum() - masked.sum() <= left:
            masked, tries = with_block, 0
    visible = np.flatnonzero(~masked)
    masked.flat[random.permutation(visible)[: max(left, 0)]] = True
    return masked


Uniform = Callable[[str, int], np.ndarray]
"""(stream name, n) → random numbers (b, n) in [0, 1)."""


@dataclass(frozen=True)
class MaskedRegionBatch:
    """Regions with masked features, the mask of chosen regions, and the original regions."""

    regions: Regions
    masked: Bool[Tensor, "b n"]
    original: Regions


def mask_regions(regions: Regions, masking: RegionMasking, uniform: Uniform) -> MaskedRegionBatch:
    """Masks each detected region with probability `rate`, at least one per image.

    The whole-image region is never masked; its feature becomes the mean of the unmasked regions.

    Differs: the official code masks no region in some images, and divides that mean by a count that includes padding.
    12-in-1's paper masks regions that overlap a masked one too; its code does not, and neither does this.
    """
    detected, n = regions.detected, regions.mask.shape[1]
    order = torch.from_numpy(uniform("regions: order", n)).to(detected.device).masked_fill(~detected, 2.0)
    at_least_one = F.one_hot(order.argmin(1), n).bool()
    masked = detected & ((order < masking.rate) | at_least_one)
    fate = torch.from_numpy(uniform("regions: fate", n)).to(detected.device)
    zeroed = masked & (fate >= masking.keep_rate)
    features = regions.features.masked_fill(zeroed[:, :, None], 0.0)
    if regions.has_whole_image:
        features = torch.cat([masked_mean(features, detected & ~zeroed)[:, None], features[:, 1:]], 1)
    return MaskedRegionBatch(replace(regions, features=features), masked, regions)


def negative_regions(
    masked: MaskedRegionBatch, regions: Regions, ids: Int[Tensor, " all"], first: int, number: int, uniform: Uniform
) -> Int[Tensor, "k number"]:
    """For each masked region, negative regions: 70 % from other images of the batch, 30 % from its own image.

    Args:
        masked: this rank's masked regions.
        regions, ids: the regions and image ids of all ranks; this rank's begin at index `first`.
        number: of negatives per masked region.

    Returns: indices into the flattened `regions`. Raises ValueError if there is no candidate.

    Source: the official code, visual_target 2. Differs: never draws padding, nor regions of the same image where it
    occurs again with another caption. Without other images all negatives are of the same image, and without other
    regions of the same image all are of other images.
    """
    detected, n = regions.detected.cpu().numpy(), regions.mask.shape[1]
    columns, image_ids = [np.flatnonzero(row) for row in detected], ids.cpu().numpy()
    b, local_n = masked.masked.shape
    chances = uniform("regions: others", local_n * 2 * number).reshape(b, local_n, 2, number)
    negatives = []
    for row, region in np.argwhere(masked.masked.cpu().numpy()):
        image = first + row
        same = columns[image][columns[image] != region]
        others = np.flatnonzero(image_ids != image_ids[image])
        num_across = int((0.7 if len(same) else 1) * number) if len(others) else 0
        if len(columns) < 2 or not len(same) + len(others):
            raise ValueError(
                "contrasting regions needs other regions in the image, or other images in the batch, but there are none"
            )
        for i, (image_chance, region_chance) in enumerate(chances[row, region].T):
            if i >= num_across:
                negatives.append(image * n + same[int(region_chance * len(same))])
                continue
            other = others[int(image_chance * len(others))]
            negatives.append(other * n + columns[other][int(region_chance * len(columns[other]))])
    return torch.tensor(np.array(negatives, dtype=np.int64), device=masked.masked.device).view(-1, number)


@dataclass(frozen=True)
class WordMasking:
    """BERT's masking: 80 % of chosen tokens become [MASK], 10 % a random token, 10 % stay (Devlin et al. 2019, 3.1).

    `ends`: the end token may be masked too, so that a captioner learns to end its captions (BEiT-3, official code).
    """

    vocab_size: int = 30522
    mask_id: int = 103
    rate: float = 0.15
    whole_words: bool = True
    ends: bool = False


@dataclass(frozen=True)
class MaskedText:
    """A text with masked tokens, the mask of chosen tokens, and the original ids."""

    text: Text
    masked: Bool[Tensor, "b n"]
    original: Int[Tensor, "b n"]


def mask_words(text: Text, masking: WordMasking, uniform: Uniform) -> MaskedText:
    """Masks about `rate` of each text's tokens, at least one; with `whole_words` all tokens of a word or none.

    [CLS] is never masked, [SEP] only with `ends`. Differs: the rate is of real tokens (the official ViLT collator also
    counts padding).
    """
    n = text.ids.shape[1]
    masked = _choose(text, masking, uniform)
    fate = torch.from_numpy(uniform("masking: fate", n))
    word = torch.from_numpy(uniform("masking: word", n))
    replaced = torch.where(fate < 0.8, masking.mask_id, (word * masking.vocab_size).long()).to(text.ids.device)
    ids = torch.where(masked & (fate < 0.9).to(text.ids.device), replaced, text.ids)
    return MaskedText(replace(text, ids=ids), masked, text.ids)


def _choose(text: Text, masking: WordMasking, uniform: Uniform) -> Bool[Tensor, "b n"]:
    """The mask of tokens chosen for masking: words in random order, as long as they fit the budget."""
    mask = text.mask.cpu().numpy()
    order = uniform("masking: order", mask.shape[1])
    columns, last = np.arange(mask.shape[1]), mask.sum(1, keepdims=True) - 1
    candidates = mask & (columns > 0) & (columns < last + masking.ends)
    word_start = candidates
    if text.word_start is not None and masking.whole_words:
        word_start = text.word_start.cpu().numpy() & candidates
    word_start = word_start | (candidates & (columns == last))
    masked = np.zeros_like(mask)
    for row in range(len(mask)):
        budget = max(1, round(masking.rate * int(mask[row].sum())))
        starts = np.flatnonzero(word_start[row])
        ends = np.append(starts[1:], candidates[row].sum() + 1)
        words = np.argsort(order[row, starts], kind="stable")
        if len(words):  # if all words are longer than the budget, mask the shortest
            budget = max(budget, min(ends - starts))
        for word in words:
            length = ends[word] - starts[word]
            if length <= budget:
                masked[row, starts[word] : ends[word]] = True
                budget -= length
    return torch.from_numpy(masked).to(text.ids.device)


def patch_mask(image: Tokens) -> Bool[Tensor, "b n"]:
    """The mask of real patches, without class tokens."""
    is_patch = torch.cat([torch.full((s.length,), s.name == "patches") for s in image.layout.spans])
    return image.mask & is_patch.to(image.mask.device)


def patch_order(image: Tokens, noise: Float[Tensor, "b m"]) -> Int[Tensor, "b n"]:
    """The rank of each patch when its image's patches are sorted by `noise`; other tokens rank last.

    A patch's noise is that of its raster index within its own image, so that it does not depend on padding.
    """
    is_patch = patch_mask(image)
    index = (is_patch.cumsum(1) - 1).clamp(min=0)
    return noise.gather(1, index).masked_fill(~is_patch, torch.inf).argsort(1).argsort(1)


def first_patches(
    image: Tokens, order: Int[Tensor, "b n"], max_patches: int | Int[Tensor, "b 1"]
) -> Bool[Tensor, "b n"]:
    """The mask of the first `max_patches` patches of each image by `order`, and of all tokens that are not patches."""
    return image.mask & (~patch_mask(image) | (order < max_patches))
