"""Recomputation for VLMo: both stages of pre-training, and each downstream task."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diptych.batch import Batch, Image, Text
from diptych.models.vlmo.model import ITC_HEADS, VLMo
from diptych.objectives.contrastive_logits import contrast_logits
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.mlm import MLMLoss
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import FixedChoices, MaskedText
from diptych.objectives.views import Views
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import ContrastRetrieval
from diptych.tasks.vqa import ClosedVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded


class Recomputation:
    """One table for each kind of step."""

    def __init__(self, case: Case):
        self.case = case
        self.step: Any = case.step
        self.model: VLMo = self.step.model

    def table(self) -> Table:
        tables = {
            Pretraining: self.pretraining,
            ContrastRetrieval: self.retrieval,
            ClosedVQA: self.vqa,
            NLVR2: self.nlvr2,
        }
        return tables[type(self.step)]() if type(self.step) in tables else {}

    def pretraining(self) -> Table:
        own, both = ITC_HEADS
        return {
            "vl_text": lambda: padded(self.views.pair.text),
            "vl_image": lambda: padded(self.views.pair.image),
            "cls_feats": lambda: Recomputed(self.views.pair.pooled),
            "text_tokens": lambda: padded(self.model.encode_unimodal(self.views.text)),
            "image_tokens": lambda: padded(self.model.encode_unimodal(self.views.image)),
            "text_emb": lambda: Recomputed(self.views.features(own).text),
            "image_emb": lambda: Recomputed(self.views.features(own).image),
            "text_vl_emb": lambda: Recomputed(self.views.features(both, 1).text),
            "image_vl_emb": lambda: Recomputed(self.views.features(both, 1).image),
            "itc_i2t_logits": lambda: Recomputed(contrast_logits(self.views, own).to_text),
            "itc_t2i_logits": lambda: Recomputed(contrast_logits(self.views, own).to_image),
            "itm_logits": lambda: Recomputed(self.objective(HardNegativeITMLoss).logits(self.views)),
            "mlm_logits": self.mlm_logits,
            **{f"{name}_loss": lambda name=name: Recomputed(self.weighted(name)) for name in self.step.weights},
        }

    def retrieval(self) -> Table:
        return {
            "text_emb": lambda: Recomputed(self.views.features("itc").text),
            "image_emb": lambda: Recomputed(self.views.features("itc").image),
            "irtr_loss": lambda: Recomputed(self.losses["retrieval"]),
        }

    def vqa(self) -> Table:
        return {
            "vqa_logits": lambda: Recomputed(self.step.logits(self.batch)),
            "vqa_loss": lambda: Recomputed(self.losses["vqa"]),
        }

    def nlvr2(self) -> Table:
        return {
            "nlvr2_logits": lambda: Recomputed(self.step.logits(self.step.pairs(self.batch))),
            "nlvr2_loss": lambda: Recomputed(self.losses["nlvr2"]),
        }

    def objective(self, kind: type) -> Any:
        matches = [objective for objective in self.step.objectives if isinstance(objective, kind)]
        if not matches:
            raise LookupError(f"this checkpoint has no head for {kind.__name__}")
        return matches[0]

    def mlm_logits(self) -> Recomputed:
        text = self.objective(MLMLoss).text(self.views)
        return Recomputed(self.views.head("mlm", text.to_padded()), text.mask)

    def weighted(self, name: str) -> Tensor:
        """A weighted loss, as the official code returns it."""
        return self.step.weights[name] * self.losses[name]

    @cached_property
    def batch(self) -> Batch:
        labels = {"vqa_targets": "targets", "labels": "true"}
        images = [Image.from_full(self.case.input(n)) for n in ("image", "image_0", "image_1") if n in self.case.inputs]
        return Batch(
            seed=0,
            step=0,
            ids=torch.arange(len(self.case.input("text_ids"))),
            image=images[0] if images else None,
            image2=images[1] if len(images) > 1 else None,
            text=Text(self.case.input("text_ids"), self.case.input("text_mask").bool()),
            labels={ours: self.case.input(name) for name, ours in labels.items() if name in self.case.inputs},
        )

    @cached_property
    def draws(self) -> FixedChoices:
        inputs = self.case.inputs
        masked = None
        if "mlm_ids" in inputs:
            labels = self.case.input("mlm_labels")
            text = Text(self.case.input("mlm_ids"), self.case.input("text_mask").bool())
            masked = MaskedText(text, labels >= 0, torch.where(labels >= 0, labels, 0))
        return FixedChoices(
            masked, negative_images=inputs.get("itm_neg_image"), negative_texts=inputs.get("itm_neg_text")
        )

    @cached_property
    def views(self) -> Views:
        if isinstance(self.step, Pretraining):
            return self.step.views(self.batch, self.draws)
        return self.step.views(self.batch)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        if isinstance(self.step, Pretraining):
            return self.step.losses(self.views, self.step.num_terms(self.batch, self.draws))
        return self.step(self.batch, self.step.num_terms(self.batch))

    def total(self) -> Tensor:
        return torch.stack([self.weighted(name) for name in self.step.weights]).sum()
