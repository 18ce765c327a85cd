"""How regions are hidden, and what else they might have been; `draws` says with which chances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from diptych.inputs import Regions, mean_of

Uniform = Callable[[str, int], np.ndarray]
"""(what for, how many of each sample) → (b, n) in [0, 1)."""


@dataclass(frozen=True)
class RegionMasking:
    """ViLBERT's masking (section 3.2): of the chosen regions 90 % lose their feature, the rest are `shown` all the same."""

    rate: float = 0.15
    shown: float = 0.1


@dataclass(frozen=True)
class HiddenRegions:
    """What a model sees of regions of which some are hidden, and what there was."""

    regions: Regions
    hidden: Bool[Tensor, "b n"]
    original: Regions


def hide(regions: Regions, masking: RegionMasking, uniform: Uniform) -> HiddenRegions:
    """Hides each region a detector saw with probability `rate`, at least one of each image; never the whole image, whose
    feature becomes the mean of what is left.

    Differs: the official code hides none in some images, and divides that mean by a count that takes in pads. 12-in-1
    says that what overlaps a hidden region is hidden too; its code does not, nor do we.
    """
    seen, n = regions.seen, regions.real.shape[1]
    order = torch.from_numpy(uniform("regions: order", n)).to(seen.device).masked_fill(~seen, 2.0)
    least = F.one_hot(order.argmin(1), n).bool()
    hidden = seen & ((order < masking.rate) | least)
    fate = torch.from_numpy(uniform("regions: fate", n)).to(seen.device)
    blank = hidden & (fate >= masking.shown)
    features = regions.features.masked_fill(blank[:, :, None], 0.0)
    if regions.whole:
        features = torch.cat([mean_of(features, seen & ~blank)[:, None], features[:, 1:]], 1)
    return HiddenRegions(replace(regions, features=features), hidden, regions)


def others(
    hidden: HiddenRegions, everyone: Regions, whose: Int[Tensor, " all"], first: int, number: int, uniform: Uniform
) -> Int[Tensor, "k number"]:
    """For each hidden region, others to be told from: seven tenths in other images of the batch, the rest in its own.

    `everyone`: what all ranks show, of which the hidden are those from `first`; `whose` image each is (objectives.identity).
    Gives places among the regions of `everyone`, flattened. Source: the official code, visual_target 2. Differs: pads are
    never drawn, nor regions of the same image where another caption shows it again; where the batch shows no other image,
    all are of its own, and where an image has one region, of others. Raises ValueError where there is neither.
    """
    seen, n = everyone.seen.cpu().numpy(), everyone.real.shape[1]
    places, owners = [np.flatnonzero(row) for row in seen], whose.cpu().numpy()
    b, own_n = hidden.hidden.shape
    chances = uniform("regions: others", own_n * 2 * number).reshape(b, own_n, 2, number)
    drawn = []
    for row, region in np.argwhere(hidden.hidden.cpu().numpy()):
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
    return torch.tensor(np.array(drawn, dtype=np.int64), device=hidden.hidden.device).view(-1, number)
