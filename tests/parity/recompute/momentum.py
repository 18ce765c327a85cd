"""Recomputation for steps with a momentum model (ALBEF, BLIP): ITC, ITM and the queue."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from diptych.batch import Batch, Image, Text
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.momentum import MomentumDistillation
from diptych.objectives.random_choices import FixedChoices, MaskedText
from diptych.objectives.views import Views
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.retrieval import RerankedRetrieval, Scores
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded, with_label_smoothing


def text_of(case: Case, stem: str) -> Text:
    return Text(case.input(f"{stem}_ids"), case.input(f"{stem}_mask").bool())


Step = TypeVar("Step", MomentumDistillation, MomentumDistilled)


def with_golden_momentum(step: Step, case: Case) -> Step:
    """The step with the momentum of the golden's config."""
    step.pace.momentum = case.config.get("momentum", step.pace.momentum)
    return step


class MomentumCase:
    """Updates the momentum model first, as training does. `cosine`: whether retrieval adds it to the ITM logit."""

    def __init__(self, case: Case, cosine: bool):
        assert isinstance(case.step, MomentumDistillation)
        self.case, self.step, self.cosine = case, case.step, cosine
        with_golden_momentum(self.step, case).update_teacher()
        self.model: Any = self.step.student.model
        self.objectives = {
            type(objective): objective for objective in with_label_smoothing(self.step.student, case).objectives
        }

    def table(self, losses: dict[str, str]) -> Table:
        """`losses`: names of losses in the golden → ours."""
        table: Table = {
            "image_embeds": lambda: padded(self.views.image),
            "fusion_embeds": lambda: padded(self.views.pair.text),
            "itm_logits": lambda: Recomputed(self.objective(HardNegativeITMLoss).logits(self.views)),
            "image_queue_after": lambda: Recomputed(self.updated_queue.image.T),
            "text_queue_after": lambda: Recomputed(self.updated_queue.text.T),
            "idx_queue_after": lambda: Recomputed(self.updated_queue.identity[None]),
            "queue_ptr_after": lambda: Recomputed(self.updated_queue.place),
            "vision_proj_m_weight_after": lambda: Recomputed(self.step.teacher.get_parameter("heads.itc.image.weight")),
            "pos_embed_resized": self.positions,
            "eval_score_i2t": lambda: Recomputed(self.scores.image_to_text),
            "eval_score_t2i": lambda: Recomputed(self.scores.text_to_image),
            "image_feat": lambda: Recomputed(self.views.features("itc").image),
            "text_feat": lambda: Recomputed(self.views.features("itc").text),
            "image_feat_m": lambda: Recomputed(self.teacher.features("itc").image),
            "text_feat_m": lambda: Recomputed(self.teacher.features("itc").text),
        }
        for official, name in losses.items():
            table[f"loss_{official}"] = lambda name=name: Recomputed(self.losses[name])
            table[f"loss_{official}_alpha0"] = lambda name=name: Recomputed(self.losses_without_distillation[name])
        return table

    def objective(self, kind: type) -> Any:
        if kind not in self.objectives:
            raise LookupError(f"this checkpoint is not trained by {kind.__name__}")
        return self.objectives[kind]

    @property
    def teacher(self) -> Views:
        assert self.views.teacher is not None
        return self.views.teacher

    @cached_property
    def batch(self) -> Batch:
        text, image = text_of(self.case, "text"), Image.from_full(self.case.input("image"))
        labels = {"image": self.case.input("idx")} if "idx" in self.case.inputs else {}
        return Batch(0, 0, torch.arange(len(text)), image=image, text=text, labels=labels)

    @cached_property
    def draws(self) -> FixedChoices:
        masked = None
        if "mlm_ids" in self.case.inputs:
            labels, real = self.case.input("mlm_labels"), self.case.input("text_mask").bool()
            masked = MaskedText(Text(self.case.input("mlm_ids"), real), labels >= 0, labels.clamp(min=0))
        images, texts = (self.case.input(f"itm_neg_{side}") for side in ("image", "text"))
        return FixedChoices(masked_text=masked, negative_images=images, negative_texts=texts)

    def views_of(self, alpha: float) -> Views:
        return self.step.views(self.batch, self.draws, alpha)

    @cached_property
    def views(self) -> Views:
        return self.views_of(self.case.input("alpha").item())

    def losses_of(self, views: Views) -> dict[str, Tensor]:
        return self.step.student.losses(views, self.step.num_terms(self.batch, self.draws))

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.losses_of(self.views)

    @cached_property
    def losses_without_distillation(self) -> dict[str, Tensor]:
        return self.losses_of(self.views_of(0.0))

    @property
    def loss(self) -> Tensor:
        return torch.stack([weight * self.losses[name] for name, weight in self.step.weights.items()]).sum()

    @cached_property
    def updated_queue(self) -> Any:
        """The queue after this batch; losses that use the queue before it are computed first."""
        assert self.step.queue is not None and self.losses and self.losses_without_distillation
        self.step.enqueue(self.views)
        return self.step.queue

    @cached_property
    def scores(self) -> Scores:
        heads: Any = self.step.student.heads
        rerank = RerankedRetrieval(self.model, heads["itc"], heads["itm"], self.case.config["k_test"], self.cosine)
        return rerank(Image.from_full(self.case.input("eval_image")), text_of(self.case, "eval_text"))

    def positions(self) -> Recomputed:
        """Positions resized to a grid with the aspect ratio of ours and the golden's number of cells."""
        patches = self.model.image.patches
        scale = math.sqrt((self.case.shapes["pos_embed_resized"][1] - 1) / math.prod(patches.grid))
        rows, columns = (round(side * scale) for side in patches.grid)
        cells = patches.positions(torch.tensor([[rows, columns]]), rows, columns)
        return Recomputed(torch.cat([patches.position[:, :1], cells], 1))
