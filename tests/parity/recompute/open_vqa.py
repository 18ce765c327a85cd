"""Recomputation for VQA with an answer decoder (ALBEF, BLIP)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import AnswerTargets, Batch, Image
from diptych.modules.tokens import Tokens
from diptych.tasks.open_vqa import OpenVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded
from tests.parity.recompute.momentum import text_of


class OpenVQACase:
    """Fused question tokens, and the decoder's logits for the answers."""

    def __init__(self, case: Case, step: OpenVQA):
        self.case, self.step = case, step

    def table(self) -> Table:
        return {
            "question_states": lambda: padded(self.question),
            "decoder_logits": lambda: Recomputed(self.logits, self.answers.text.mask),
            "answer_loss": lambda: Recomputed(self.step.answer_losses(self.logits, self.answers.text)),
        }

    @cached_property
    def answers(self) -> AnswerTargets:
        counts = self.case.input("answers_per_question")
        question = torch.arange(len(counts)).repeat_interleave(counts)
        return AnswerTargets(text_of(self.case, "answer"), question, self.case.input("answer_weights"))

    @cached_property
    def batch(self) -> Batch:
        text, image = text_of(self.case, "text"), Image.from_full(self.case.input("image"))
        return Batch(0, 0, torch.arange(len(text)), image=image, text=text, answers=self.answers)

    @cached_property
    def question(self) -> Tokens:
        return self.step.encode_question(self.batch)

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.question, self.answers)
