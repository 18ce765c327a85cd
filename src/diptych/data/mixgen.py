"""MixGen augmentation (Hao et al., WACV 2023, figure 2): blends the images of two pairs and joins their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diptych.batch import Batch
from diptych.data.examples import LoadedPair, PairExamples
from diptych.data.sources.base import BadSample
from diptych.utils.rng import uniform


def mixed(
    images: Float[Tensor, "b c h w"], texts: Sequence[str], number: int, share: float = 0.5
) -> tuple[Float[Tensor, "b c h w"], list[str]]:
    """The first `number` samples, each mixed with the sample `number` places later.

    Images are blended with weight `share` (the paper's λ) on the first; texts are joined by a space. Raises ValueError
    if 2 x `number` exceeds the batch.
    """
    if not 0 <= 2 * number <= len(texts):
        raise ValueError(f"cannot mix {number} of {len(texts)} samples: each needs a partner of its own")
    first, second, rest = images.split([number, number, len(images) - 2 * number])
    joined = [f"{a} {b}" for a, b in zip(texts[:number], texts[number : 2 * number], strict=True)]
    return torch.cat([share * first + (1 - share) * second, second, rest]), joined + list(texts[number:])


def mixed_in_turn(
    images: Float[Tensor, "b c h w"], texts: Sequence[str], partners: Sequence[int], share: float = 0.5
) -> tuple[Float[Tensor, "b c h w"], list[str]]:
    """Every sample in order mixed with its partner (an index in the batch), which may itself be mixed already.

    Source: `mixgen_batch` of the official code, which the paper does not describe.
    """
    blended, joined = list(images), list(texts)
    for i, partner in enumerate(partners):
        blended[i] = share * blended[i] + (1 - share) * blended[partner]
        joined[i] = f"{joined[i]} {joined[partner]}"
    return torch.stack(blended), joined


class MixedPairs:
    """Pairs of `pairs`, each mixed with another with probability `chance` (the paper: a quarter of each batch).

    Differs: the partner is drawn from all data, not from the batch, keyed by the sample's id, so that a sample is the
    same in any batch, rank or worker. The result keeps its own image's identity (LoadedPair.identity), whose other
    captions are not its negatives; the partner's are, as in the paper. Raises BadSample for images of different sizes:
    resize them to squares.
    """

    def __init__(self, pairs: PairExamples, chance: float = 0.25, share: float = 0.5):
        self.pairs, self.chance, self.share = pairs, chance, share

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        return self.pairs.length(index)

    def load(self, index: int, seed: int, step: int) -> LoadedPair:
        own = self.pairs.load(index, seed, step)
        whether, which = uniform(seed, step, [index], "mixgen", 2)[0]
        if whether >= self.chance or len(self) < 2:
            return own
        other = int(which * (len(self) - 1))
        other += other >= index
        partner = self.pairs.load(other, seed, step)
        pair = [_channels_first(x.image) for x in (own, partner)]
        if pair[0].shape != pair[1].shape:
            where = self.pairs.source.where(int(self.pairs.owner[other]))
            sizes = " and ".join(f"{tuple(image.shape[1:])}" for image in pair)
            raise BadSample(where, f"images of different sizes, {sizes}, cannot be mixed: set images.square")
        images, texts = mixed(torch.stack(pair), [own.caption, partner.caption], 1, self.share)
        return replace(own, image=np.ascontiguousarray(images[0].permute(1, 2, 0).numpy()), caption=texts[0])

    def collate(self, loaded: list[LoadedPair], ids: Sequence[int], seed: int, step: int) -> Batch:
        return self.pairs.collate(loaded, ids, seed, step)


def _channels_first(image: np.ndarray) -> Float[Tensor, "c h w"]:
    return torch.from_numpy(image).float().permute(2, 0, 1)
