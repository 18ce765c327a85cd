"""Text assignment: to which of two images does this text belong, if to any? Prepares for NLVR2 (ALBEF, section 5).

NLVR2: is this sentence true of these two photographs? (Suhr et al. 2019)

NLVR2 for models whose text meets both photographs at once (BLIP, ALBEF).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.modules.heads import PairClassifier
from diptych.modules.init import init_transformer
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.cross_entropy import SoftTargets, distilled_loss
from diptych.objectives.sampling import KeyedChoices
from diptych.protocols import ChanceLoss, FusionEncoder, MultiImageFusionEncoder
from diptych.tasks.common import Loss, encode_images, required, sample_counts

TEMPERATURE = 0.07  # of the likeness by which other images are drawn (official code)


class AssignmentTargets(NamedTuple):
    """The images put before each text, by index in the batch, and whose it is: the first's, the second's, no one's."""

    first: Int[Tensor, " b"]
    second: Int[Tensor, " b"]
    labels: Int[Tensor, " b"]


class TextAssignment(nn.Module):
    """A step: cross entropy of the three answers, each in one third of the cases.

    Other images are drawn from the batch, the likelier the more like the text's own they are; `project` makes the features
    that are compared, as contrast taught it to, and learns nothing here. Raises ValueError for batches under three.
    """

    def __init__(self, model: MultiImageFusionEncoder, dim: int, project: nn.Linear):
        super().__init__()
        self.model, self.project = model, project.requires_grad_(False)
        self.head = nn.Linear(dim, 3)
        self.head.apply(init_transformer)
        self.weights = {"assignment": 1.0}
        self.chance_losses = {
            "assignment": ChanceLoss(math.log(3), "three answers alike", "the two images are not yet compared")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "assignment", "assignment/accuracy")

    def images(self, batch: Batch) -> Tokens:
        return self.model.encode_image(required(batch.image, "image"))

    @torch.no_grad()
    def assigned(self, batch: Batch, images: Tokens) -> AssignmentTargets:
        """Two other images for each text, one of which gives way to its own in two thirds of the cases."""
        if len(batch) < 3:
            raise ValueError("a text is to be told from two other images: the batch must have three at least")
        feature, keyed = F.normalize(self.project(images.first()), dim=1), KeyedChoices(batch)
        likeness = (feature @ feature.T / TEMPERATURE).double().fill_diagonal_(-torch.inf)
        drawn = torch.from_numpy(keyed.uniform("assigned images", len(batch))).clamp(min=1e-300)
        others = (likeness - drawn.log().neg().log().to(likeness.device)).topk(2, 1).indices
        labels = (3 * torch.from_numpy(keyed.uniform("assigned label", 1)[:, 0])).long().to(others.device)
        own = torch.arange(len(batch), device=others.device)
        first = torch.where(labels == 0, own, others[:, 0])
        second = torch.where(labels == 1, own, torch.where(labels == 0, others[:, 0], others[:, 1]))
        return AssignmentTargets(first, second, labels)

    def logits(self, batch: Batch, images: Tokens, given: AssignmentTargets) -> Float[Tensor, "b 3"]:
        text = self.model.encode_text(required(batch.text, "text"))
        pair = self.model.fuse_images(
            text, (images.index_samples(given.first), images.index_samples(given.second).with_image_index(1))
        )
        return self.head(pair.pooled).float()

    def losses(self, logits: Tensor, labels: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == labels).sum().float()
        return {
            "assignment": F.cross_entropy(logits, labels, reduction="sum") / counts["assignment"],
            "assignment/accuracy": right.detach() / counts["assignment/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        images = self.images(batch)
        given = self.assigned(batch, images)
        return self.losses(self.logits(batch, images, given), given.labels, counts)


class NLVR2(nn.Module):
    """A step for models that fuse the text with each image by itself (ViLT, VLMo, BEiT-3): ``labels["true"]`` (b,).

    `width`: of the two summaries that the head reads side by side; `head`: in place of ViLT's.
    """

    def __init__(self, model: FusionEncoder, dim: int, head: nn.Module | None = None, loss: Loss = F.cross_entropy):
        super().__init__()
        self.model, self.loss = model, loss
        self.head = head or PairClassifier(2 * dim, 2 * dim, 2)
        self.head.apply(init_transformer)
        self.weights = {"nlvr2": 1.0}
        self.chance_losses = {
            "nlvr2": ChanceLoss(math.log(2), "true or false alike", "the two images are not yet compared")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "nlvr2", "nlvr2/accuracy")

    def pairs(self, batch: Batch) -> tuple[FusedTokens, FusedTokens]:
        """The text with the left image, and with the right one."""
        text = self.model.encode_text(required(batch.text, "text"))
        left = encode_images(self.model, batch)
        right = self.model.encode_image(required(batch.image2, "second image"))  # type: ignore[arg-type]
        return self.model.fuse(text, left), self.model.fuse(text, right.with_image_index(1))

    def logits(self, pairs: tuple[FusedTokens, FusedTokens]) -> Float[Tensor, "b 2"]:
        return self.head(torch.cat([pair.pooled for pair in pairs], 1)).float()

    def losses(self, logits: Tensor, true: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == true).sum().float()
        return {
            "nlvr2": self.loss(logits, true, reduction="sum") / counts["nlvr2"],
            "nlvr2/accuracy": right.detach() / counts["nlvr2/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.logits(self.pairs(batch)), batch.labels["true"], counts)


class NLVR2Joint(nn.Module):
    """A step: cross entropy of ``labels["true"]`` (b,) on the text's first token, after both images."""

    def __init__(self, model: MultiImageFusionEncoder, dim: int):
        super().__init__()
        self.model = model
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))
        self.head.apply(init_transformer)
        self.weights = {"nlvr2": 1.0}
        self.chance_losses = {
            "nlvr2": ChanceLoss(math.log(2), "true or false alike", "the two images are not yet compared")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "nlvr2", "nlvr2/accuracy")

    def pair(self, batch: Batch) -> FusedTokens:
        """The text, after it has met the left and the right image."""
        text = self.model.encode_text(required(batch.text, "text"))
        left = encode_images(self.model, batch)
        right = self.model.encode_image(required(batch.image2, "second image"))  # type: ignore[arg-type]
        return self.model.fuse_images(text, (left, right.with_image_index(1)))

    def logits(self, pair: FusedTokens) -> Float[Tensor, "b 2"]:
        return self.head(pair.pooled).float()

    def answer(self, batch: Batch) -> Float[Tensor, "b 2"]:
        """The logits of a batch, which a teacher of this kind says too (tasks.distilled)."""
        return self.logits(self.pair(batch))

    def losses(
        self, logits: Tensor, true: Tensor, counts: dict[str, Tensor], soft: SoftTargets | None = None
    ) -> dict[str, Tensor]:
        right = (logits.argmax(1) == true).sum().float()
        return {
            "nlvr2": distilled_loss(F.cross_entropy(logits, true, reduction="sum"), logits, soft) / counts["nlvr2"],
            "nlvr2/accuracy": right.detach() / counts["nlvr2/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor], soft: SoftTargets | None = None) -> dict[str, Tensor]:
        return self.losses(self.answer(batch), batch.labels["true"], counts, soft)
