"""How patches of an image are hidden in blocks.

How regions are hidden, and what else they might have been; `draws` says with which chances.

How words are hidden; `draws` says with which chances.

Which patches stay where only some may: an order drawn for each image, of which the first are kept.
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
from diptych.modules.tokens import Tokens


@dataclass(frozen=True)
class BlockMasking:
    """BEiT's masking (Bao et al. 2022, section 2.3, algorithm 1; BEiT-3: 40 %): rectangles of at least `least` patches and of
    aspect `aspect` to its inverse, until `rate` of an image's patches is hidden.
    """

    rate: float = 0.4
    least: int = 16
    aspect: float = 0.3


TRIES = 10  # rectangles drawn before what is left is hidden patch by patch


def block_mask(rows: int, columns: int, masking: BlockMasking, random: np.random.Generator) -> np.ndarray:
    """Which of ``rows × columns`` patches are hidden: exactly `rate` of them, rounded, at least one.

    Differs: the official code stops short where no rectangle fits any more, so that the number varies; the last few are
    drawn one by one here. `least` is bounded by what is yet to be hidden, so that small images have blocks too.
    """
    hidden = np.zeros((rows, columns), dtype=bool)
    wanted = max(1, round(masking.rate * rows * columns))
    tries = 0
    while (left := wanted - int(hidden.sum())) > 0 and tries < TRIES:
        area = random.uniform(min(masking.least, left), left)
        aspect = math.exp(random.uniform(math.log(masking.aspect), -math.log(masking.aspect)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        tries += 1
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        top, side = random.integers(rows - height + 1), random.integers(columns - width + 1)
        more = hidden.copy()
        more[top : top + height, side : side + width] = True
        if 0 < more.sum() - hidden.sum() <= left:
            hidden, tries = more, 0
    shown = np.flatnonzero(~hidden)
    hidden.flat[random.permutation(shown)[: max(left, 0)]] = True
    return hidden


Uniform = Callable[[str, int], np.ndarray]
"""(what for, how many of each sample) → (b, n) in [0, 1)."""


@dataclass(frozen=True)
class RegionMasking:
    """ViLBERT's masking (section 3.2): of the chosen regions 90 % lose their feature, the rest are `shown` all the same."""

    rate: float = 0.15
    shown: float = 0.1


@dataclass(frozen=True)
class MaskedRegionBatch:
    """What a model sees of regions of which some are hidden, and what there was."""

    regions: Regions
    masked: Bool[Tensor, "b n"]
    original: Regions


def mask_regions(regions: Regions, masking: RegionMasking, uniform: Uniform) -> MaskedRegionBatch:
    """Hides each region a detector saw with probability `rate`, at least one of each image; never the whole image, whose
    feature becomes the mean of what is left.

    Differs: the official code hides none in some images, and divides that mean by a count that takes in pads. 12-in-1
    says that what overlaps a hidden region is hidden too; its code does not, nor do we.
    """
    seen, n = regions.detected, regions.mask.shape[1]
    order = torch.from_numpy(uniform("regions: order", n)).to(seen.device).masked_fill(~seen, 2.0)
    least = F.one_hot(order.argmin(1), n).bool()
    hidden = seen & ((order < masking.rate) | least)
    fate = torch.from_numpy(uniform("regions: fate", n)).to(seen.device)
    blank = hidden & (fate >= masking.shown)
    features = regions.features.masked_fill(blank[:, :, None], 0.0)
    if regions.has_whole_image:
        features = torch.cat([masked_mean(features, seen & ~blank)[:, None], features[:, 1:]], 1)
    return MaskedRegionBatch(replace(regions, features=features), hidden, regions)


def negative_regions(
    hidden: MaskedRegionBatch, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int, uniform: Uniform
) -> Int[Tensor, "k number"]:
    """For each hidden region, others to be told from: seven tenths in other images of the batch, the rest in its own.

    `everyone`: what all ranks show, of which the hidden are those from `first`; `whose` image each is (objectives.identity).
    Gives places among the regions of `everyone`, flattened. Source: the official code, visual_target 2. Differs: pads are
    never drawn, nor regions of the same image where another caption shows it again; where the batch shows no other image,
    all are of its own, and where an image has one region, of others. Raises ValueError where there is neither.
    """
    seen, n = everyone.detected.cpu().numpy(), everyone.mask.shape[1]
    places, owners = [np.flatnonzero(row) for row in seen], whose.cpu().numpy()
    b, own_n = hidden.masked.shape
    chances = uniform("regions: others", own_n * 2 * number).reshape(b, own_n, 2, number)
    drawn = []
    for row, region in np.argwhere(hidden.masked.cpu().numpy()):
        image = first + row
        own, strange = places[image][places[image] != region], np.flatnonzero(owners != owners[image])
        across = int((0.7 if len(own) else 1) * number) if len(strange) else 0
        if len(places) < 2 or not len(own) + len(strange):
            raise ValueError("a region is told from others in its image and in other images, but there are none")
        for at, (which, where) in enumerate(chances[row, region].T):
            if at >= across:
                drawn.append(image * n + own[int(where * len(own))])
                continue
            other = strange[int(which * len(strange))]
            drawn.append(other * n + places[other][int(where * len(places[other]))])
    return torch.tensor(np.array(drawn, dtype=np.int64), device=hidden.masked.device).view(-1, number)


@dataclass(frozen=True)
class WordMasking:
    """BERT's masking: of the chosen pieces 80 % become [MASK], 10 % a random piece, 10 % stay (Devlin et al. 2019, 3.1).

    `ends`: the token that ends a text may hide too, so that who learns to write learns to stop (BEiT-3, official code).
    """

    vocab_size: int = 30522
    mask_id: int = 103
    rate: float = 0.15
    whole_words: bool = True
    ends: bool = False


@dataclass(frozen=True)
class MaskedText:
    """A text with some pieces hidden, and what stood there."""

    text: Text
    masked: Bool[Tensor, "b n"]
    original: Int[Tensor, "b n"]


def mask_words(text: Text, masking: WordMasking, uniform: Uniform) -> MaskedText:
    """Hides about `rate` of each text's real pieces, at least one; with `whole_words` all pieces of a word or none.

    The budget counts real pieces only (the official ViLT collator also counts pads); [CLS] never hides, [SEP] only with `ends`.
    """
    n = text.ids.shape[1]
    hidden = _chosen(text, masking, uniform)
    fate = torch.from_numpy(uniform("masking: fate", n))
    word = torch.from_numpy(uniform("masking: word", n))
    replaced = torch.where(fate < 0.8, masking.mask_id, (word * masking.vocab_size).long()).to(text.ids.device)
    ids = torch.where(hidden & (fate < 0.9).to(text.ids.device), replaced, text.ids)
    return MaskedText(replace(text, ids=ids), hidden, text.ids)


def _chosen(text: Text, masking: WordMasking, uniform: Uniform) -> Bool[Tensor, "b n"]:
    real = text.mask.cpu().numpy()
    order = uniform("masking: order", real.shape[1])
    places, last = np.arange(real.shape[1]), real.sum(1, keepdims=True) - 1
    inner = real & (places > 0) & (places < last + masking.ends)
    begins = inner if text.word_start is None or not masking.whole_words else text.word_start.cpu().numpy() & inner
    begins = begins | (inner & (places == last))
    hidden = np.zeros_like(real)
    for row in range(len(real)):
        budget = max(1, round(masking.rate * int(real[row].sum())))
        starts = np.flatnonzero(begins[row])
        ends = np.append(starts[1:], inner[row].sum() + 1)
        words = np.argsort(order[row, starts], kind="stable")
        if len(words):  # a text of long words alone still hides one
            budget = max(budget, min(ends - starts))
        for word in words:
            length = ends[word] - starts[word]
            if length <= budget:
                hidden[row, starts[word] : ends[word]] = True
                budget -= length
    return torch.from_numpy(hidden).to(text.ids.device)


def num_patches(image: Tokens) -> Bool[Tensor, "b n"]:
    """Which tokens are real patches."""
    patch = torch.cat([torch.full((s.length,), s.name == "patches") for s in image.layout.spans])
    return image.mask & patch.to(image.mask.device)


def patch_order(image: Tokens, noise: Float[Tensor, "b m"]) -> Int[Tensor, "b n"]:
    """The place of each patch when its image's are sorted by `noise`; what is no patch stands behind.

    A patch has the noise of its place in its own image, in raster order, whatever canvas the image lies on.
    """
    candidate = num_patches(image)
    place = (candidate.cumsum(1) - 1).clamp(min=0)
    return noise.gather(1, place).masked_fill(~candidate, torch.inf).argsort(1).argsort(1)


def first_patches(image: Tokens, order: Int[Tensor, "b n"], most: int | Int[Tensor, "b 1"]) -> Bool[Tensor, "b n"]:
    """All that is no patch, and the first `most` patches of each image."""
    return image.mask & (~num_patches(image) | (order < most))
