"""Recomputation for BLIP: pre-training and retrieval; the other tasks are in blip_tasks.py."""

from __future__ import annotations

from torch import Tensor

from diptych.objectives.momentum import MomentumDistillation
from diptych.tasks.captioning import Captioning
from diptych.tasks.nlvr2 import NLVR2Joint
from diptych.tasks.open_vqa import OpenVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.blip_tasks import CaptionRecomputation, NLVR2Recomputation, VQARecomputation
from tests.parity.recompute.inputs import padded
from tests.parity.recompute.momentum import MomentumCase


class Recomputation:
    """Delegates to a class for each kind of step."""

    def __init__(self, case: Case):
        self.kind = KINDS[type(case.step)](case)

    def table(self) -> Table:
        return self.kind.table()

    def total(self) -> Tensor:
        return self.kind.loss


class MomentumRecomputation:
    def __init__(self, case: Case):
        self.shared = MomentumCase(case, cosine=True)

    def table(self) -> Table:
        return self.shared.table({"ita": "itc", "itm": "itm", "lm": "lm"}) | {
            "text_embeds": lambda: padded(self.shared.model.encode_unimodal(self.shared.views.text)),
            "lm_logits": self.words,
        }

    @property
    def loss(self) -> Tensor:
        return self.shared.loss

    def words(self) -> Recomputed:
        views = self.shared.views
        return Recomputed(self.shared.model.next_token_logits(views.text_input, views.image), views.text_input.mask)


KINDS = {
    Captioning: CaptionRecomputation,
    OpenVQA: VQARecomputation,
    NLVR2Joint: NLVR2Recomputation,
    MomentumDistillation: MomentumRecomputation,
}
