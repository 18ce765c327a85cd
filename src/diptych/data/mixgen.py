"""MixGen: A New Multi-Modal Data Augmentation (Hao et al., WACV 2023), figure 2: two pairs become one, their images blended
and their texts joined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def mixed(
    images: Float[Tensor, "b c h w"], texts: Sequence[str], number: int, share: float = 0.5
) -> tuple[Float[Tensor, "b c h w"], list[str]]:
    """The first `number` samples, each mixed with the one `number` behind it: `share` of its own image (the paper's λ),
    the rest of the other's; both texts with a space between. Raises ValueError where the batch has no room for that.
    """
    if not 0 <= 2 * number <= len(texts):
        raise ValueError(f"{number} of {len(texts)} samples cannot be mixed: each needs another of its own")
    first, second, rest = images.split([number, number, len(images) - 2 * number])
    joined = [f"{a} {b}" for a, b in zip(texts[:number], texts[number : 2 * number], strict=True)]
    return torch.cat([share * first + (1 - share) * second, second, rest]), joined + list(texts[number:])


def mixed_in_turn(
    images: Float[Tensor, "b c h w"], texts: Sequence[str], partners: Sequence[int], share: float = 0.5
) -> tuple[Float[Tensor, "b c h w"], list[str]]:
    """Every sample, one after the other, mixed with its partner (a place in the batch), who may be mixed by then: the
    official code's `mixgen_batch`, which the paper does not describe.
    """
    blended, joined = list(images), list(texts)
    for i, partner in enumerate(partners):
        blended[i] = share * blended[i] + (1 - share) * blended[partner]
        joined[i] = f"{joined[i]} {joined[partner]}"
    return torch.stack(blended), joined
