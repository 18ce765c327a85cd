"""What of a BLIP golden can be recomputed: pre-training and retrieval here, the other tasks beside it."""

from __future__ import annotations

from torch import Tensor

from diptych.objectives.momentum import MomentumDistillation
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.vqa import OpenVQA
from tests.parity.answers.blip_tasks import CaptionAnswers, NLVR2Answers, VQAAnswers
from tests.parity.answers.given import on_canvas
from tests.parity.answers.momentum import MomentumCase
from tests.parity.golden_case import Answer, Case, Table


class Answers:
    """One table of names for each kind of step."""

    def __init__(self, case: Case):
        self.kind = KINDS[type(case.step)](case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        return self.kind.loss


class MomentumAnswers:
    def __init__(self, case: Case):
        self.shared = MomentumCase(case, cosine=True)

    def table(self) -> Table:
        return self.shared.table({"ita": "itc", "itm": "itm", "lm": "lm"}) | {
            "text_embeds": lambda: on_canvas(self.shared.model.encode_unimodal(self.shared.views.text)),
            "lm_logits": self.words,
        }

    @property
    def loss(self) -> Tensor:
        return self.shared.loss

    def words(self) -> Answer:
        views = self.shared.views
        return Answer(self.shared.model.decode(views.text_input, views.image), views.text_input.mask)


KINDS = {
    Captioning: CaptionAnswers,
    OpenVQA: VQAAnswers,
    NLVR2Joint: NLVR2Answers,
    MomentumDistillation: MomentumAnswers,
}
