"""What of a ViLBERT golden can be recomputed for the downstream tasks, and how its inputs are read."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from diptych.batch import Batch, Regions, Text
from diptych.models.vilbert.model import ViLBERT
from diptych.modules.pool import ProductPooler
from diptych.modules.tokens import FusedTokens, Tokens
from diptych.tasks.multitask import MultiTask
from diptych.tasks.vcr import MultipleChoice
from tests.parity.answers.given import on_canvas
from tests.parity.golden_case import Answer, Case, Table

CHOSEN, TRUE, ENTAILED = "2", "0, 1", "0, 2, 1, 1"
"""Labels, where no README says others: they stand in no other file."""


def text_of(case: Case) -> Text:
    """Raises LookupError for a second sentence, which nothing here has."""
    if case.input("segment_ids").any():
        raise LookupError("a text of two segments")
    return Text(case.input("text_ids"), case.input("text_mask").bool(), task=case.inputs.get("task_ids"))


def regions_of(case: Case, features: str = "features") -> Regions:
    return Regions(
        case.input(features), case.input("locations"), case.input("region_mask").bool(), has_whole_image=True
    )


def on_tokens(head: nn.Module, tokens: Tokens) -> Answer:
    return Answer(head(tokens.to_padded()), tokens.mask)


def pooled_text(model: object, pair: FusedTokens) -> Answer:
    return Answer(_pooler(model).project_text(pair.text.first()))


def pooled_image(model: object, pair: FusedTokens) -> Answer:
    return Answer(_pooler(model).project_image(pair.image.first()))


def _pooler(model: object) -> ProductPooler:
    assert isinstance(model, ViLBERT) and isinstance(model.streams.pooler, ProductPooler)
    return model.streams.pooler


class TasksAnswers:
    """The same batch under every task that the checkpoint has a head for."""

    def __init__(self, case: Case):
        assert isinstance(case.step, MultiTask)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "text_states": lambda: on_canvas(self.pair.text),
            "vision_states": lambda: on_canvas(self.pair.image),
            "pooled_text": lambda: pooled_text(self.step.model, self.pair),
            "pooled_vision": lambda: pooled_image(self.step.model, self.pair),
            "vqa_logits": lambda: Answer(self.task("vqa").logits(self.batch)),
            "gqa_logits": lambda: Answer(self.task("gqa").logits(self.batch)),
            "vil_logit": lambda: Answer(self.choice.scores(self.pair)[:, None]),
            "binary_logits": lambda: Answer(self.task("nlvr2").logits(self.sides)),
            "tri_logits": lambda: Answer(self.task("entailment").logits(self.pair)),
            "vision_prediction": lambda: on_tokens(self.head("regions"), self.pair.image),
            "vision_logit": lambda: Answer(self.task("grounding").scores(self.pair)[:, :, None], self.pair.image.mask),
            "text_prediction": lambda: on_tokens(self.head("words"), self.pair.text),
            "text_logit": lambda: Answer(
                self.head("word")(self.pair.text.to_padded())[:, :, None], self.pair.text.mask
            ),
            "vqa_loss": lambda: self.loss("vqa", self.task("vqa").logits(self.batch), self.case.input("vqa_target")),
            "ref_loss": lambda: self.loss(
                "grounding", self.task("grounding").scores(self.pair), self.case.input("ref_target").squeeze(2)
            ),
            "choice_loss": self.choice_loss,
            "nlvr2_loss": lambda: self.loss(
                "nlvr2", self.task("nlvr2").logits(self.sides), self.labels("nlvr2_loss", TRUE)
            ),
            "ve_loss": lambda: self.loss(
                "entailment", self.task("entailment").logits(self.pair), self.labels("ve_loss", ENTAILED)
            ),
        }

    @cached_property
    def batch(self) -> Batch:
        text = text_of(self.case)
        return Batch(0, 0, torch.arange(len(text)), text=text, regions=regions_of(self.case))

    def task(self, name: str) -> Any:
        if name not in self.step.tasks:
            raise LookupError(f"this checkpoint has no head for {name}")
        return self.step.tasks[name]

    def head(self, name: str) -> nn.Module:
        if name not in self.step.heads:
            raise LookupError(f"this checkpoint has no head for {name}")
        return self.step.heads[name]

    @cached_property
    def pair(self) -> FusedTokens:
        return self.task("entailment").pair(self.batch)

    @property
    def sides(self) -> tuple[FusedTokens, FusedTokens]:
        """Neighbouring samples, as the left and the right image of a sentence."""

        def every_second(first: int) -> FusedTokens:
            rows = torch.arange(first, len(self.batch), 2)
            return FusedTokens(
                self.pair.text.index_samples(rows), self.pair.image.index_samples(rows), self.pair.pooled[rows]
            )

        return every_second(0), every_second(1)

    @property
    def choice(self) -> MultipleChoice:
        """All samples as the options of one item."""
        choice: MultipleChoice = copy.copy(self.task("choice"))
        choice.options = len(self.batch)
        return choice

    def choice_loss(self) -> Answer:
        right = torch.arange(len(self.batch)) == int(self.case.said("choice_loss", r"target (\d+)", CHOSEN))
        losses = self.choice.losses(self.choice.scores(self.pair), right, self.choice.num_terms(self.batch))
        return Answer(losses["choice"])

    def labels(self, name: str, published: str) -> Tensor:
        """Of each sample."""
        return torch.tensor([int(n) for n in self.case.said(name, r"labels \[([\d, ]+)\]", published).split(",")])

    def loss(self, name: str, said: Tensor, asked: Tensor) -> Answer:
        """The task's mean over the samples that `said` has."""
        n = torch.tensor(float(len(said)))
        task = self.task(name)
        return Answer(task.losses(said, asked, dict.fromkeys(task.num_terms(self.batch), n))[name])

    def total(self) -> Tensor:
        raise LookupError("gradients of several tasks at once, which are not trained at once")
