"""How patches of an image are hidden in blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BlockMasking:
    """BEiT's masking (Bao et al. 2022, section 2.3, algorithm 1; BEiT-3: 40 %): rectangles of at least `least` patches and of
    aspect `aspect` to its inverse, until `rate` of an image's patches is hidden.
    """

    rate: float = 0.4
    least: int = 16
    aspect: float = 0.3


TRIES = 10  # rectangles drawn before what is left is hidden patch by patch


def hidden_blocks(rows: int, columns: int, masking: BlockMasking, random: np.random.Generator) -> np.ndarray:
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
