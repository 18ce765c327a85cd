"""Recomputation for ALBEF: pre-training and retrieval; the other tasks are in albef_tasks.py."""

from __future__ import annotations

from torch import Tensor

from diptych.objectives.mlm import MLMLoss
from diptych.objectives.momentum import MomentumDistillation
from diptych.objectives.views import Views
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import NLVR2Joint, TextAssignment
from diptych.tasks.open_vqa import OpenVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.albef_tasks import AssignmentRecomputation, ClassificationRecomputation, VQARecomputation
from tests.parity.recompute.inputs import padded
from tests.parity.recompute.momentum import MomentumCase


class Recomputation:
    """Delegates to a class for each kind of step."""

    def __init__(self, case: Case):
        step = case.step.student if isinstance(case.step, MomentumDistilled) else case.step
        self.kind = KINDS[type(step)](case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        return self.kind.loss


class MomentumRecomputation:
    def __init__(self, case: Case):
        self.shared = MomentumCase(case, cosine=False)

    def table(self) -> Table:
        return self.shared.table({"mlm": "mlm", "ita": "itc", "itm": "itm"}) | {
            "text_embeds": lambda: padded(self.shared.views.text),
            "mlm_logits": lambda: self.words(self.shared.views),
            "mlm_logits_m": lambda: self.words(self.shared.teacher),
        }

    @property
    def loss(self) -> Tensor:
        return self.shared.loss

    def words(self, views: Views) -> Recomputed:
        text = self.shared.objective(MLMLoss).text(views)
        return Recomputed(views.head("mlm", text.to_padded()), text.mask)


KINDS = {
    MomentumDistillation: MomentumRecomputation,
    Entailment: ClassificationRecomputation,
    NLVR2Joint: ClassificationRecomputation,
    OpenVQA: VQARecomputation,
    TextAssignment: AssignmentRecomputation,
}
