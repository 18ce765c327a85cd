"""Image-text contrast: which text belongs to this image, and which image to this text?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.objectives.contrast import contrast_logits, teacher_logits
from diptych.objectives.cross_entropy import soft_cross_entropy
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool


@dataclass(frozen=True)
class ITC:
    """Told from all candidates, image to text and text to image, and the mean of both.

    `form` "softmax": cross entropy over scaled cosines (CLIP, figure 3). "sigmoid": whether each pair belongs together, by
    itself, summed over a sample's candidates (SigLIP: Zhai et al. 2023, equation 1); its heads want an offset
    (heads.Contrast.judging_pairs).

    `heads`: the Contrast head of each readout that `unimodal` gives, in its order; their losses are averaged (VLMo has
    two). The rest of the batch, on all ranks, is what a sample is told from; micro-batches do not see each other. Where
    several pairs share an image, each of them is right (objectives.identity).

    With a momentum model (ALBEF, section 3.2) a sample is told from that model's view of the batch and from the queue, and
    the targets are (1 - alpha) the truth + alpha what the momentum model finds (section 3.3; of the sigmoid form no paper
    says so).
    """

    name: str = "itc"
    weight: float = 1.0
    head_names: tuple[str, ...] = ("contrast",)
    form: Literal["softmax", "sigmoid"] = "softmax"

    def samples_compared(self, among: ComparisonPool) -> int:
        """Samples that each one is compared with: the batch of all ranks and the queue."""
        return among.all_ranks + among.queue

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        losses, right = [], []
        for readout, head in enumerate(self.head_names):
            found, lesson = contrast_logits(views, head, readout), teacher_logits(views, head, readout)
            true = found.own[:, None] == found.others
            alpha = 0.0 if views.teacher_output is None else views.teacher_output.alpha
            to_text = self._losses(found.to_text, true, None if lesson is None else lesson.to_text, alpha)
            to_image = self._losses(found.to_image, true, None if lesson is None else lesson.to_image, alpha)
            losses.append((to_text + to_image).sum() / 2)
            right.append(true.gather(1, found.to_text.argmax(1, keepdim=True)).sum().float())
        return {
            self.name: torch.stack(losses).mean(),
            f"{self.name}/accuracy": torch.stack(right).mean().detach(),
        }

    def _losses(
        self, logits: Float[Tensor, "b m"], true: Bool[Tensor, "b m"], lesson: Float[Tensor, "b m"] | None, alpha: float
    ) -> Float[Tensor, " b"]:
        if self.form == "sigmoid":
            targets = _mixed(true.float(), None if lesson is None else lesson.float().sigmoid(), alpha)
            return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(1)
        truth = true / true.sum(1, keepdim=True)
        return soft_cross_entropy(logits, _mixed(truth, None if lesson is None else lesson.float().softmax(1), alpha))

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """Of `statistics["candidates"]`, the global batch and the queue, where it is told: ln of their number; of the
        sigmoid form, what it costs to know of each pair only that one candidate in so many belongs.
        """
        if "candidates" not in statistics:
            return None
        n = statistics["candidates"]
        apart = (n - 1) * math.log(n / (n - 1)) if self.form == "sigmoid" and n > 1 else 0.0
        return ChanceLoss(
            math.log(n) + apart,
            "loss of every candidate alike",
            "images and texts are not yet told apart: check the temperature, the learning rate and that pairs are true",
        )


def _mixed(truth: Float[Tensor, "b m"], lesson: Float[Tensor, "b m"] | None, alpha: float) -> Float[Tensor, "b m"]:
    """What the data say, to the share `alpha` what the teacher does."""
    return truth if lesson is None else alpha * lesson + (1 - alpha) * truth
