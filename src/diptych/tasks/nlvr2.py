"""NLVR2: whether a sentence is true of two images (Suhr et al. 2019), and text assignment, ALBEF's pre-training for it.

`NLVR2` fuses the text with each image separately (ViLT, VLMo, BEiT-3), `NLVR2Joint` with both at once (ALBEF, BLIP).
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
from diptych.objectives.random_choices import KeyedChoices
from diptych.protocols import ChanceLoss, FusionEncoder, MultiImageFusionEncoder
from diptych.tasks.common import Loss, encode_images, required, sample_counts

TEMPERATURE = 0.07  # of the similarities by which negative images are sampled (official code)


class AssignmentTargets(NamedTuple):
    """The two images shown with each text, by index in the batch, and the label: 0 first, 1 second, 2 neither."""

    first: Int[Tensor, " b"]
    second: Int[Tensor, " b"]
    labels: Int[Tensor, " b"]


class TextAssignment(nn.Module):
    """A training step: which of two images a text belongs to, if any; cross entropy of three equally frequent classes.

    Negative images are sampled from the batch, in proportion to their similarity with the text's own image. `project`
    is the contrastive head's image projection, frozen. Raises ValueError for batches of fewer than three.

    Source: ALBEF, section 5.
    """

    def __init__(self, model: MultiImageFusionEncoder, dim: int, project: nn.Linear):
        super().__init__()
        self.model, self.project = model, project.requires_grad_(False)
        self.head = nn.Linear(dim, 3)
        self.head.apply(init_transformer)
        self.weights = {"assignment": 1.0}
        self.chance_losses = {
            "assignment": ChanceLoss(math.log(3), "uniform over three classes", "the two images are not compared yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "assignment", "assignment/accuracy")

    def images(self, batch: Batch) -> Tokens:
        return self.model.encode_image(required(batch.image, "image"))

    @torch.no_grad()
    def sample_images(self, batch: Batch, images: Tokens) -> AssignmentTargets:
        """Two negative images for each text; in two thirds of the cases its own image replaces one of them."""
        if len(batch) < 3:
            raise ValueError(
                f"text assignment needs two negative images: expected a batch of at least 3, got {len(batch)}"
            )
        feature, keyed = F.normalize(self.project(images.first()), dim=1), KeyedChoices(batch)
        similarity = (feature @ feature.T / TEMPERATURE).double().fill_diagonal_(-torch.inf)
        noise = torch.from_numpy(keyed.uniform("assigned images", len(batch))).clamp(min=1e-300)
        gumbel = -noise.log().neg().log().to(similarity.device)
        others = (similarity + gumbel).topk(2, 1).indices  # sampling without replacement
        labels = (3 * torch.from_numpy(keyed.uniform("assigned label", 1)[:, 0])).long().to(others.device)
        own = torch.arange(len(batch), device=others.device)
        first = torch.where(labels == 0, own, others[:, 0])
        second = torch.where(labels == 1, own, torch.where(labels == 0, others[:, 0], others[:, 1]))
        return AssignmentTargets(first, second, labels)

    def logits(self, batch: Batch, images: Tokens, targets: AssignmentTargets) -> Float[Tensor, "b 3"]:
        text = self.model.encode_text(required(batch.text, "text"))
        first, second = images.index_samples(targets.first), images.index_samples(targets.second)
        pair = self.model.fuse_images(text, (first, second.with_image_index(1)))
        return self.head(pair.pooled).float()

    def losses(self, logits: Tensor, labels: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        right = (logits.argmax(1) == labels).sum().float()
        return {
            "assignment": F.cross_entropy(logits, labels, reduction="sum") / counts["assignment"],
            "assignment/accuracy": right.detach() / counts["assignment/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        images = self.images(batch)
        targets = self.sample_images(batch, images)
        return self.losses(self.logits(batch, images, targets), targets.labels, counts)


class NLVR2(nn.Module):
    """A training step for models that fuse the text with each image separately: `loss` of ``labels["true"]`` (b,).

    `dim`: of the pooled features of each pair, which are concatenated for the head. `head`: replaces ViLT's.
    """

    def __init__(self, model: FusionEncoder, dim: int, head: nn.Module | None = None, loss: Loss = F.cross_entropy):
        super().__init__()
        self.model, self.loss = model, loss
        self.head = head or PairClassifier(2 * dim, 2 * dim, 2)
        self.head.apply(init_transformer)
        self.weights = {"nlvr2": 1.0}
        self.chance_losses = {
            "nlvr2": ChanceLoss(math.log(2), "uniform over true and false", "the two images are not compared yet")
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
    """A training step for models that fuse the text with both images at once: cross entropy of ``labels["true"]`` (b,).

    The head reads the text's first token after fusion.
    """

    def __init__(self, model: MultiImageFusionEncoder, dim: int):
        super().__init__()
        self.model = model
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))
        self.head.apply(init_transformer)
        self.weights = {"nlvr2": 1.0}
        self.chance_losses = {
            "nlvr2": ChanceLoss(math.log(2), "uniform over true and false", "the two images are not compared yet")
        }

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "nlvr2", "nlvr2/accuracy")

    def pair(self, batch: Batch) -> FusedTokens:
        """The text fused with the left and the right image."""
        text = self.model.encode_text(required(batch.text, "text"))
        left = encode_images(self.model, batch)
        right = self.model.encode_image(required(batch.image2, "second image"))  # type: ignore[arg-type]
        return self.model.fuse_images(text, (left, right.with_image_index(1)))

    def logits(self, pair: FusedTokens) -> Float[Tensor, "b 2"]:
        return self.head(pair.pooled).float()

    def batch_logits(self, batch: Batch) -> Float[Tensor, "b 2"]:
        """The logits of a batch; a momentum teacher computes them too (see `MomentumDistilled`)."""
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
        return self.losses(self.batch_logits(batch), batch.labels["true"], counts, soft)
