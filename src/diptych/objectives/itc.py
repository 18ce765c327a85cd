"""Image-text contrastive loss (ITC)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.config.objectives import ITC
from diptych.modules.heads import ITCHead, LogScale
from diptych.objectives.contrastive_logits import contrast_logits, teacher_logits
from diptych.objectives.cross_entropy import soft_cross_entropy
from diptych.objectives.definition import Definition, Needs
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, DualEncoder, PatchEncoder


@dataclass(frozen=True)
class ITCLoss:
    """The mean of the image-to-text and text-to-image losses over all candidates.

    Args:
        form: "softmax": cross entropy over scaled cosines (CLIP, figure 3). "sigmoid": binary cross entropy of each
            pair, summed over a sample's candidates (SigLIP: Zhai et al. 2023, equation 1); its heads need an offset
            (`modules.heads.ITCHead.use_sigmoid`).
        head_names: the ITC head of each of the model's `pooled_features`, in their order; losses are averaged (VLMo has
            two).

    Negatives are the other samples of the batch, on all ranks, but not of other micro-batches. Pairs that share an
    image are positives of each other (see contrastive_logits.py).

    With a momentum model (ALBEF, section 3.2) the candidates are its features of the batch and the queue, and the
    targets are (1 - alpha) · labels + alpha · the momentum model's distribution (section 3.3; for the sigmoid form no
    paper does this).
    """

    name: str = "itc"
    weight: float = 1.0
    head_names: tuple[str, ...] = ("itc",)
    form: Literal["softmax", "sigmoid"] = "softmax"

    def samples_compared(self, among: ComparisonPool) -> int:
        """The number of candidates of each sample: the batch of all ranks and the queue."""
        return among.all_ranks + among.queue

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        n = torch.tensor(float(len(views.batch)), device=views.batch.ids.device)
        return {self.name: n, f"{self.name}/accuracy": n}

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        losses, correct = [], []
        for branch, head in enumerate(self.head_names):
            logits, teacher = contrast_logits(views, head, branch), teacher_logits(views, head, branch)
            positives = logits.ids[:, None] == logits.candidate_ids
            alpha = 0.0 if views.teacher_output is None else views.teacher_output.alpha
            to_text = self._losses(logits.to_text, positives, None if teacher is None else teacher.to_text, alpha)
            to_image = self._losses(logits.to_image, positives, None if teacher is None else teacher.to_image, alpha)
            losses.append((to_text + to_image).sum() / 2)
            correct.append(positives.gather(1, logits.to_text.argmax(1, keepdim=True)).sum().float())
        return {
            self.name: torch.stack(losses).mean(),
            f"{self.name}/accuracy": torch.stack(correct).mean().detach(),
        }

    def _losses(
        self,
        logits: Float[Tensor, "b m"],
        positives: Bool[Tensor, "b m"],
        teacher: Float[Tensor, "b m"] | None,
        alpha: float,
    ) -> Float[Tensor, " b"]:
        if self.form == "sigmoid":
            targets = _mixed(positives.float(), None if teacher is None else teacher.float().sigmoid(), alpha)
            return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").sum(1)
        labels = positives / positives.sum(1, keepdim=True)
        return soft_cross_entropy(
            logits, _mixed(labels, None if teacher is None else teacher.float().softmax(1), alpha)
        )

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The loss of equal logits: ln of the number of candidates (`statistics["candidates"]`: batch and queue).

        Of the sigmoid form: the entropy of every pair's label, a match with probability 1 / candidates. None without
        the statistic.
        """
        if "candidates" not in statistics:
            return None
        n = statistics["candidates"]
        mismatched = (n - 1) * math.log(n / (n - 1)) if self.form == "sigmoid" and n > 1 else 0.0
        return ChanceLoss(
            math.log(n) + mismatched,
            "uniform over candidates",
            "images and texts are not yet distinguished: check the temperature, the learning rate and that pairs match",
        )


def _mixed(labels: Float[Tensor, "b m"], teacher: Float[Tensor, "b m"] | None, alpha: float) -> Float[Tensor, "b m"]:
    """(1 − alpha) · labels + alpha · the teacher's distribution; the labels without a teacher."""
    return labels if teacher is None else alpha * teacher + (1 - alpha) * labels


def add_itc_head(settings: ITC, model: Any, heads: nn.ModuleDict) -> None:
    """Adds an ITC head to a model of image patches that has none; gives all ITC heads the form of the loss."""
    if "itc" not in heads and isinstance(model, PatchEncoder):
        heads["itc"] = ITCHead(model.dim, model.dim, model.dim, LogScale(), bias=False)
    for head in heads.values():
        if settings.form == "sigmoid" and isinstance(head, ITCHead):
            head.use_sigmoid()


DEFINITION = Definition(
    ITC,
    needs=lambda itc: Needs((DualEncoder,), "itc", grad_cache_size=itc.grad_cache_size),
    losses=lambda itc, setup: [ITCLoss(weight=itc.weight, head_names=setup.itc_heads, form=itc.form)],
    add_heads=add_itc_head,
    trains="retrieval",
)
