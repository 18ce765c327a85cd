"""Masked images: which visual tokens stand for the patches that are hidden, given those that are not?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diptych.modules.tokens import Tokens
from diptych.objectives.masked_views import codes, hidden_alone, hidden_pair, hidden_patches
from diptych.objectives.masking import BlockMasking
from diptych.objectives.sampling import Hiding, Masking
from diptych.objectives.views import Views
from diptych.protocols import Floor


@dataclass(frozen=True)
class MaskedCodes:
    """Cross entropy of hidden patches' codes, as a tokenizer that has learned gives them (BEiT, section 2.3; BEiT-3, section
    2.2). `beside`: the words hidden in the text that the image is read with; None: it is read alone.

    Differs: whether BEiT-3 hides both sides of a pair at once is not said in its paper; its predecessor does (VL-BEiT,
    section 2.3), and so do we.
    """

    blocks: BlockMasking = field(default_factory=BlockMasking)
    name: str = "codes"
    weight: float = 1.0
    beside: Masking | None = None

    def counts(self, views: Views) -> dict[str, Tensor]:
        n = hidden_patches(views, self.blocks).sum().float()
        return {self.name: n, f"{self.name}/accuracy": n}

    def totals(self, views: Views) -> dict[str, Tensor]:
        logits, there = self.guesses(views), codes(views)[hidden_patches(views, self.blocks)]
        return {
            self.name: F.cross_entropy(logits, there, reduction="sum"),
            f"{self.name}/accuracy": (logits.argmax(1) == there).sum().float().detach(),
        }

    def guesses(self, views: Views) -> Float[Tensor, "hidden codes"]:
        """Logits of the hidden patches, sample after sample."""
        patches = self.image(views).by_span(name="patches")
        return views.head("codes", patches.rows(hidden_patches(views, self.blocks))).float()

    def image(self, views: Views) -> Tokens:
        """What the codes are guessed from."""
        if self.beside is not None:
            return hidden_pair(views, Hiding(self.beside, self.blocks)).image
        return hidden_alone(views, self.blocks)

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """The entropy of the codes' frequencies, where `statistics` knows it ("code_entropy"), else ln of their number
        ("codes").
        """
        if "code_entropy" not in statistics and "codes" not in statistics:
            return None
        return Floor(
            statistics.get("code_entropy", math.log(statistics.get("codes", 1.0))),
            "entropy of the visual tokens",
            "only how frequent each code is has been learned: the visible patches are not read; check the learning rate and "
            "warm-up, and that the tokenizer uses its codebook",
        )
