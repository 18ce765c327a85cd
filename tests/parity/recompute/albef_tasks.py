"""Recomputation for ALBEF's downstream tasks. The momentum model is updated first, as in training."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.modules.tokens import FusedTokens
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import AssignmentTargets, NLVR2Joint, TextAssignment
from diptych.tasks.open_vqa import OpenVQA, RankedAnswers
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded
from tests.parity.recompute.momentum import text_of, with_golden_momentum
from tests.parity.recompute.open_vqa import OpenVQACase


class ClassificationRecomputation:
    """Entailment and NLVR2. For NLVR2, `in.image` holds the left images, then the right ones."""

    def __init__(self, case: Case):
        assert isinstance(case.step, MomentumDistilled) and isinstance(case.step.student, (Entailment, NLVR2Joint))
        self.case, self.step = case, case.step
        self.student: Entailment | NLVR2Joint = case.step.student
        with_golden_momentum(self.step, case).update_teacher()

    def table(self) -> Table:
        return {
            "text_states": lambda: padded(self.pair.text),
            "logits": lambda: Recomputed(self.student.logits(self.pair)),
            "loss": lambda: Recomputed(self.loss),
            "loss_alpha0": lambda: Recomputed(self.loss_at(0.0)),
        }

    @cached_property
    def batch(self) -> Batch:
        text, labels = text_of(self.case, "text"), self.case.input("labels")
        images = self.case.input("image").split(len(text))
        left, *right = (Image.from_full(part) for part in images)
        second = right[0] if right else None
        named = {"entailment": labels, "true": labels}
        return Batch(0, 0, torch.arange(len(text)), image=left, image2=second, text=text, labels=named)

    @cached_property
    def pair(self) -> FusedTokens:
        return self.student.pair(self.batch)

    def loss_at(self, alpha: float) -> Tensor:
        (name,) = self.step.weights
        return self.step.losses(self.batch, self.step.num_terms(self.batch), alpha)[name]

    @cached_property
    def loss(self) -> Tensor:
        return self.loss_at(self.case.input("alpha").item())


class VQARecomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, MomentumDistilled) and isinstance(case.step.student, OpenVQA)
        self.case, self.step, self.student = case, case.step, case.step.student
        self.shared = OpenVQACase(case, self.student)
        with_golden_momentum(self.step, case).update_teacher()

    def table(self) -> Table:
        return self.shared.table() | {
            "loss": lambda: Recomputed(self.loss),
            "loss_alpha0": lambda: Recomputed(self.loss_at(0.0)),
            "rank_ids": lambda: Recomputed(self.ranked.candidates),
            "rank_probs": lambda: Recomputed(self.ranked.probabilities),
        }

    def loss_at(self, alpha: float) -> Tensor:
        return self.step.losses(self.shared.batch, self.step.num_terms(self.shared.batch), alpha)["vqa"]

    @cached_property
    def loss(self) -> Tensor:
        return self.loss_at(self.case.input("alpha").item())

    @cached_property
    def ranked(self) -> RankedAnswers:
        """As many candidates as in the golden."""
        num_candidates = self.case.shapes["rank_ids"][1]
        return self.student.rank(self.shared.question, text_of(self.case, "cand"), num_candidates)


class AssignmentRecomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, TextAssignment)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {"logits": lambda: Recomputed(self.logits), "loss": lambda: Recomputed(self.loss)}

    @cached_property
    def batch(self) -> Batch:
        text, image = text_of(self.case, "text"), Image.from_full(self.case.input("image"))
        return Batch(0, 0, torch.arange(len(text)), image=image, text=text)

    @cached_property
    def targets(self) -> AssignmentTargets:
        return AssignmentTargets(*(self.case.input(name) for name in ("first_image", "second_image", "labels")))

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.batch, self.step.images(self.batch), self.targets)

    @cached_property
    def loss(self) -> Tensor:
        return self.step.losses(self.logits, self.targets.labels, self.step.num_terms(self.batch))["assignment"]
