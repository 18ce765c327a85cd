"""What can be recomputed of any golden whose answers are written by a decoder (ALBEF, BLIP)."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from diptych.batch import AnswerTargets, Batch, Image
from diptych.modules.tokens import Tokens
from diptych.tasks.vqa import OpenVQA
from tests.parity.answers.given import on_canvas
from tests.parity.answers.momentum import text_of
from tests.parity.golden_case import Answer, Case, Table


class OpenVQACase:
    """Questions that have met their images, and what the decoder makes of their answers."""

    def __init__(self, case: Case, step: OpenVQA):
        self.case, self.step = case, step

    def table(self) -> Table:
        return {
            "question_states": lambda: on_canvas(self.question),
            "decoder_logits": lambda: Answer(self.logits, self.answers.text.mask),
            "answer_loss": lambda: Answer(self.step.each(self.logits, self.answers.text)),
        }

    @cached_property
    def answers(self) -> AnswerTargets:
        several = self.case.input("answers_per_question")
        question = torch.arange(len(several)).repeat_interleave(several)
        return AnswerTargets(text_of(self.case, "answer"), question, self.case.input("answer_weights"))

    @cached_property
    def batch(self) -> Batch:
        text, image = text_of(self.case, "text"), Image.from_full(self.case.input("image"))
        return Batch(0, 0, torch.arange(len(text)), image=image, text=text, answers=self.answers)

    @cached_property
    def question(self) -> Tokens:
        return self.step.question(self.batch)

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.question, self.answers)
