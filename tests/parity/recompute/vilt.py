"""Recomputation for ViLT: pre-training; the downstream tasks are in vilt_tasks.py."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.batch import Batch, Image, Matching, Text
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.objectives.itm import ITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices, MaskedText
from diptych.objectives.views import Views
from diptych.objectives.wpa import TransportPlan, WPALoss
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import Retrieval
from diptych.tasks.vqa import ClosedVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import batch_of, padded, patch_grid, text_of
from tests.parity.recompute.vilt_tasks import NLVR2Recomputation, RetrievalRecomputation, VQARecomputation


class Recomputation:
    """Delegates to a class for each kind of step."""

    def __init__(self, case: Case):
        self.step: Any = case.step
        kind = next((kind for step, kind in KINDS.items() if isinstance(case.step, step)), None)
        if kind is None:
            raise LookupError("this checkpoint has no head")
        self.kind = kind(case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        weights: dict[str, float] = self.step.weights
        return sum((weight * self.kind.losses[name] for name, weight in weights.items()), torch.tensor(0.0))


class PretrainingRecomputation:
    """The three objectives on one set of views, and the views with the number of patches capped."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        self.objectives = {type(objective): objective for objective in self.step.objectives}

    def table(self) -> Table:
        return {
            "text_embed": lambda: padded(self.views.text),
            "visual_embed_cls": lambda: Recomputed(self.views.image.select(name="cls").first()),
            "visual_embed_grid": lambda: patch_grid(self.views.image),
            "text_feats": lambda: padded(self.views.pair.text),
            "image_cls": lambda: Recomputed(self.views.pair.image.select(name="cls").first()),
            "image_grid": lambda: patch_grid(self.views.pair.image),
            "image_valid": lambda: self.valid(self.views.pair.image),
            "cls_feats": lambda: Recomputed(self.views.pair.pooled),
            "mlm_logits": self.mlm_logits,
            "mlm_loss": lambda: Recomputed(self.losses["mlm"]),
            "itm_logits": lambda: Recomputed(self.objective(ITMLoss).logits(self.views)),
            "itm_loss": lambda: Recomputed(self.losses["itm"]),
            "wpa_cost": lambda: self.with_class_tokens(self.transport.cost),
            "wpa_T": lambda: self.with_class_tokens(self.transport.plan),
            "wpa_distance": lambda: Recomputed(self.transport.distance),
            "wpa_loss": lambda: Recomputed(self.step.weights["wpa"] * self.losses["wpa"]),
            "cap_text_feats": lambda: padded(self.capped.text),
            "cap_cls_feats": lambda: Recomputed(self.capped.pooled),
        }

    def objective(self, kind: type) -> Any:
        if kind not in self.objectives:
            raise LookupError(f"this checkpoint has no head for {kind.__name__}")
        return self.objectives[kind]

    @cached_property
    def batch(self) -> Batch:
        if "itm_labels" not in self.case.inputs:
            return batch_of(self.case)
        matched = self.case.input("itm_labels") == 1
        images = torch.where(matched[:, None, None, None], self.case.input("image"), self.case.input("false_image"))
        return batch_of(self.case, matching=Matching(Image.from_padded(images), matched))

    @cached_property
    def draws(self) -> FixedChoices:
        if "mlm_ids" not in self.case.inputs:
            return FixedChoices()
        labels, text = self.case.input("mlm_labels"), text_of(self.case)
        hidden = labels >= 0
        masked = Text(self.case.input("mlm_ids"), text.mask)
        return FixedChoices(MaskedText(masked, hidden, torch.where(hidden, labels, 0)))

    @cached_property
    def views(self) -> Views:
        return self.step.views(self.batch, self.draws)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.views, self.step.num_terms(self.batch, self.draws))

    @cached_property
    def transport(self) -> TransportPlan:
        return self.objective(WPALoss).transport(self.views.matching_pair)

    @cached_property
    def capped(self) -> FusedTokens:
        kept = F.pad(self.case.input("cap_selected").flatten(1).bool(), (1, 0), value=True)  # and the class token
        max_patches = self.case.config["max_image_len_cap_case"]
        return Views(self.step.model, self.step.heads, self.batch, FixedChoices(kept_patches=kept), max_patches).pair

    def mlm_logits(self) -> Recomputed:
        text = self.views.masked_pair(self.objective(MLMLoss).masking).text
        return Recomputed(self.views.head("mlm", text.to_padded()), text.mask)

    def valid(self, image: Tokens) -> Recomputed:
        mask = patch_grid(image).mask
        assert mask is not None
        return Recomputed(mask.long())

    def with_class_tokens(self, inner: Tensor) -> Recomputed:
        """Adds a zero row and column for the class tokens, which carry no mass."""
        return Recomputed(F.pad(inner, (1, 0, 1, 0)))


KINDS = {
    Pretraining: PretrainingRecomputation,
    ClosedVQA: VQARecomputation,
    NLVR2: NLVR2Recomputation,
    Retrieval: RetrievalRecomputation,
}
