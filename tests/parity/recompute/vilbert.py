"""Recomputation for ViLBERT: pre-training; the downstream tasks are in vilbert_tasks.py."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.batch import Batch, Matching, Regions
from diptych.models.vilbert.checkpoint import MASKING
from diptych.modules.tokens import FusedTokens
from diptych.objectives.itm import ITMLoss
from diptych.objectives.masked_regions import ContrastTarget, MaskedRegionLoss, Target, class_target, feature_target
from diptych.objectives.masked_views import masked_pair
from diptych.objectives.masking import MaskedRegionBatch
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices, MaskedText
from diptych.objectives.views import Views
from diptych.tasks.multitask import MultiTask
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded
from tests.parity.recompute.vilbert_tasks import (
    TasksRecomputation,
    on_tokens,
    pooled_image,
    pooled_text,
    regions_of,
    text_of,
)


class Recomputation:
    """Delegates to a class for each kind of step."""

    def __init__(self, case: Case):
        if not isinstance(case.step, (Pretraining, MultiTask)):
            raise LookupError("this checkpoint has no head")
        self.kind = PretrainingRecomputation(case) if isinstance(case.step, Pretraining) else TasksRecomputation(case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        return self.kind.total()


class PretrainingRecomputation:
    """One pair with masked words and regions, under the three objectives; masked regions with each kind of target."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "text_states": lambda: padded(self.pair.text),
            "vision_states": lambda: padded(self.pair.image),
            "pooled_text": lambda: pooled_text(self.step.model, self.pair),
            "pooled_vision": lambda: pooled_image(self.step.model, self.pair),
            "mlm_logits": lambda: on_tokens(self.step.heads["mlm"], self.pair.text),
            "region_logits": lambda: on_tokens(self.step.heads["regions"], self.pair.image),
            "region_predictions": lambda: on_tokens(self.step.heads["regions"], self.pair.image),
            "alignment_logits": lambda: Recomputed(ITMLoss(masking=MASKING).logits(self.views).flip(1)),
            "loss_mlm": lambda: Recomputed(self.loss("mlm")),
            "loss_region": lambda: Recomputed(self.region_loss(class_target)),
            "loss_region_mse": lambda: Recomputed(self.region_loss(feature_target)),
            "loss_region_nce": lambda: Recomputed(
                self.region_loss(ContrastTarget(self.case.input("nce_index").shape[-1]))
            ),
            "loss_alignment": lambda: Recomputed(self.loss("itm")),
        }

    @property
    def by_class(self) -> bool:
        """Whether targets are classes (visual_target 0), not features (1, 2, or a text that names both)."""
        return self.case.config.get("visual_target", 0) == 0

    @cached_property
    def hidden(self) -> MaskedRegionBatch:
        """The golden's masked regions. Its targets, classes or features, lack the region of the whole image."""
        masked, targets = regions_of(self.case, "features_masked"), F.pad(self.case.input("image_target"), (0, 0, 1, 0))
        features = self.case.input("features") if self.by_class else targets
        original = Regions(features, masked.boxes, masked.mask, targets, has_whole_image=True)
        return MaskedRegionBatch(masked, F.pad(self.case.input("image_label") == 1, (1, 0)), original)

    @cached_property
    def batch(self) -> Batch:
        text, matched = text_of(self.case), self.case.input("alignment_label") == 0
        return Batch(0, 0, torch.arange(len(text)), text=text, matching=Matching(self.hidden.original, matched))

    @cached_property
    def draws(self) -> FixedChoices:
        labels, text = self.case.input("mlm_labels"), text_of(self.case)
        hidden = labels >= 0
        masked = MaskedText(text, hidden, torch.where(hidden, labels, text.ids))
        if "nce_index" not in self.case.inputs:
            return FixedChoices(masked, masked_regions=self.hidden)
        index, regions = self.case.input("nce_index"), self.hidden.masked.shape[1] - 1
        ours = index // regions * (regions + 1) + index % regions + 1  # the official index omits the whole image
        return FixedChoices(masked, masked_regions=self.hidden, others=ours[self.hidden.masked[:, 1:]])

    @cached_property
    def views(self) -> Views:
        return self.step.views(self.batch, self.draws)

    @property
    def pair(self) -> FusedTokens:
        return masked_pair(self.views, MASKING)

    def loss(self, name: str) -> Tensor:
        objective = next(objective for objective in self.step.objectives if objective.name == name)
        return objective.loss_sums(self.views)[name] / objective.num_terms(self.views)[name]

    def region_loss(self, target: Target) -> Tensor:
        objective = MaskedRegionLoss(MASKING, target)
        return objective.loss_sums(self.views)["masked_regions"] / objective.num_terms(self.views)["masked_regions"]

    def total(self) -> Tensor:
        """The sum of the three losses, with the golden's kind of region target."""
        visual_target = self.case.config.get("visual_target", 0)
        losses = {0: "loss_region", 1: "loss_region_mse", 2: "loss_region_nce"}
        if visual_target not in losses:
            raise LookupError(f"unknown visual_target {visual_target!r}; expected 0, 1 or 2")
        return self.loss("mlm") + self.table()[losses[visual_target]]().value + self.loss("itm")
