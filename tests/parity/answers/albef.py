"""What of an ALBEF golden can be recomputed: pre-training and retrieval here, the other tasks beside it."""

from __future__ import annotations

from torch import Tensor

from diptych.objectives.mlm import MLM
from diptych.objectives.momentum import MomentumDistillation
from diptych.objectives.views import Views
from diptych.tasks.entailment import Entailment
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.nlvr2 import NLVR2Joint, TextAssignment
from diptych.tasks.vqa import OpenVQA
from tests.parity.answers.albef_tasks import AssignmentAnswers, JudgedAnswers, VQAAnswers
from tests.parity.answers.given import on_canvas
from tests.parity.answers.momentum import MomentumCase
from tests.parity.golden_case import Answer, Case, Table


class Answers:
    """One table of names for each kind of step."""

    def __init__(self, case: Case):
        step = case.step.student if isinstance(case.step, MomentumDistilled) else case.step
        self.kind = KINDS[type(step)](case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        return self.kind.loss


class MomentumAnswers:
    def __init__(self, case: Case):
        self.shared = MomentumCase(case, cosine=False)

    def table(self) -> Table:
        return self.shared.table({"mlm": "mlm", "ita": "itc", "itm": "itm"}) | {
            "text_embeds": lambda: on_canvas(self.shared.views.text),
            "mlm_logits": lambda: self.words(self.shared.views),
            "mlm_logits_m": lambda: self.words(self.shared.teacher),
        }

    @property
    def loss(self) -> Tensor:
        return self.shared.loss

    def words(self, views: Views) -> Answer:
        text = self.shared.objective(MLM).text(views)
        return Answer(views.head("words", text.to_padded()), text.mask)


KINDS = {
    MomentumDistillation: MomentumAnswers,
    Entailment: JudgedAnswers,
    NLVR2Joint: JudgedAnswers,
    OpenVQA: VQAAnswers,
    TextAssignment: AssignmentAnswers,
}
