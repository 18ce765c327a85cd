"""What of an ALBEF golden can be recomputed for the downstream tasks. A momentum model's step comes first, as in training."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import Batch, Image
from diptych.modules.tokens import FusedTokens
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import AssignmentTargets, NLVR2Joint, TextAssignment
from diptych.tasks.vqa import OpenVQA, RankedAnswers
from tests.parity.answers.given import on_canvas
from tests.parity.answers.momentum import at_pace, text_of
from tests.parity.answers.open_vqa import OpenVQACase
from tests.parity.golden_case import Answer, Case, Table


class JudgedAnswers:
    """Entailment, and NLVR2, of which `in.image` holds the left images, then the right ones."""

    def __init__(self, case: Case):
        assert isinstance(case.step, MomentumDistilled) and isinstance(case.step.student, (Entailment, NLVR2Joint))
        self.case, self.step = case, case.step
        self.student: Entailment | NLVR2Joint = case.step.student
        at_pace(self.step, case).follow()

    def table(self) -> Table:
        return {
            "text_states": lambda: on_canvas(self.pair.text),
            "logits": lambda: Answer(self.student.logits(self.pair)),
            "loss": lambda: Answer(self.loss),
            "loss_alpha0": lambda: Answer(self.loss_at(0.0)),
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


class VQAAnswers:
    def __init__(self, case: Case):
        assert isinstance(case.step, MomentumDistilled) and isinstance(case.step.student, OpenVQA)
        self.case, self.step, self.student = case, case.step, case.step.student
        self.shared = OpenVQACase(case, self.student)
        at_pace(self.step, case).follow()

    def table(self) -> Table:
        return self.shared.table() | {
            "loss": lambda: Answer(self.loss),
            "loss_alpha0": lambda: Answer(self.loss_at(0.0)),
            "rank_ids": lambda: Answer(self.ranked.candidates),
            "rank_probs": lambda: Answer(self.ranked.probabilities),
        }

    def loss_at(self, alpha: float) -> Tensor:
        return self.step.losses(self.shared.batch, self.step.num_terms(self.shared.batch), alpha)["vqa"]

    @cached_property
    def loss(self) -> Tensor:
        return self.loss_at(self.case.input("alpha").item())

    @cached_property
    def ranked(self) -> RankedAnswers:
        """As many candidates as the golden has ranked."""
        most = self.case.shapes["rank_ids"][1]
        return self.student.rank(self.shared.question, text_of(self.case, "cand"), most)


class AssignmentAnswers:
    def __init__(self, case: Case):
        assert isinstance(case.step, TextAssignment)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {"logits": lambda: Answer(self.logits), "loss": lambda: Answer(self.loss)}

    @cached_property
    def batch(self) -> Batch:
        text, image = text_of(self.case, "text"), Image.from_full(self.case.input("image"))
        return Batch(0, 0, torch.arange(len(text)), image=image, text=text)

    @cached_property
    def given(self) -> AssignmentTargets:
        return AssignmentTargets(*(self.case.input(name) for name in ("first_image", "second_image", "labels")))

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.batch, self.step.images(self.batch), self.given)

    @cached_property
    def loss(self) -> Tensor:
        return self.step.losses(self.logits, self.given.labels, self.step.num_terms(self.batch))["assignment"]
