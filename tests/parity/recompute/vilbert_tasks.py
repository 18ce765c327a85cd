"""Recomputation for ViLBERT's downstream tasks, and its inputs as a batch."""

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
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import padded

CHOICE_TARGET, NLVR2_LABELS, ENTAILMENT_LABELS = "2", "0, 1", "0, 2, 1, 1"
"""Labels, which are in no tensor; the README of a golden may override them."""


def text_of(case: Case) -> Text:
    """The texts. Raises LookupError for a second segment, which is not supported."""
    if case.input("segment_ids").any():
        raise LookupError("a text has two segments; expected one")
    return Text(case.input("text_ids"), case.input("text_mask").bool(), task=case.inputs.get("task_ids"))


def regions_of(case: Case, features: str = "features") -> Regions:
    return Regions(
        case.input(features), case.input("locations"), case.input("region_mask").bool(), has_whole_image=True
    )


def on_tokens(head: nn.Module, tokens: Tokens) -> Recomputed:
    return Recomputed(head(tokens.to_padded()), tokens.mask)


def pooled_text(model: object, pair: FusedTokens) -> Recomputed:
    return Recomputed(_pooler(model).project_text(pair.text.first()))


def pooled_image(model: object, pair: FusedTokens) -> Recomputed:
    return Recomputed(_pooler(model).project_image(pair.image.first()))


def _pooler(model: object) -> ProductPooler:
    assert isinstance(model, ViLBERT) and isinstance(model.streams.pooler, ProductPooler)
    return model.streams.pooler


class TasksRecomputation:
    """The same batch under every task whose head the checkpoint has."""

    def __init__(self, case: Case):
        assert isinstance(case.step, MultiTask)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "text_states": lambda: padded(self.pair.text),
            "vision_states": lambda: padded(self.pair.image),
            "pooled_text": lambda: pooled_text(self.step.model, self.pair),
            "pooled_vision": lambda: pooled_image(self.step.model, self.pair),
            "vqa_logits": lambda: Recomputed(self.task("vqa").logits(self.batch)),
            "gqa_logits": lambda: Recomputed(self.task("gqa").logits(self.batch)),
            "vil_logit": lambda: Recomputed(self.choice.scores(self.pair)[:, None]),
            "binary_logits": lambda: Recomputed(self.task("nlvr2").logits(self.sides)),
            "tri_logits": lambda: Recomputed(self.task("entailment").logits(self.pair)),
            "vision_prediction": lambda: on_tokens(self.head("regions"), self.pair.image),
            "vision_logit": lambda: Recomputed(
                self.task("grounding").scores(self.pair)[:, :, None], self.pair.image.mask
            ),
            "text_prediction": lambda: on_tokens(self.head("mlm"), self.pair.text),
            "text_logit": lambda: Recomputed(
                self.head("word")(self.pair.text.to_padded())[:, :, None], self.pair.text.mask
            ),
            "vqa_loss": lambda: self.loss("vqa", self.task("vqa").logits(self.batch), self.case.input("vqa_target")),
            "ref_loss": lambda: self.loss(
                "grounding", self.task("grounding").scores(self.pair), self.case.input("ref_target").squeeze(2)
            ),
            "choice_loss": self.choice_loss,
            "nlvr2_loss": lambda: self.loss(
                "nlvr2", self.task("nlvr2").logits(self.sides), self.labels("nlvr2_loss", NLVR2_LABELS)
            ),
            "ve_loss": lambda: self.loss(
                "entailment", self.task("entailment").logits(self.pair), self.labels("ve_loss", ENTAILMENT_LABELS)
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
        """Adjacent samples as the left and the right image of a sentence."""

        def every_second(first: int) -> FusedTokens:
            rows = torch.arange(first, len(self.batch), 2)
            return FusedTokens(
                self.pair.text.index_samples(rows), self.pair.image.index_samples(rows), self.pair.pooled[rows]
            )

        return every_second(0), every_second(1)

    @property
    def choice(self) -> MultipleChoice:
        """The multiple-choice task with all samples as the options of one item."""
        choice: MultipleChoice = copy.copy(self.task("choice"))
        choice.options = len(self.batch)
        return choice

    def choice_loss(self) -> Recomputed:
        right = torch.arange(len(self.batch)) == int(
            self.case.from_readme("choice_loss", r"target (\d+)", CHOICE_TARGET)
        )
        losses = self.choice.losses(self.choice.scores(self.pair), right, self.choice.num_terms(self.batch))
        return Recomputed(losses["choice"])

    def labels(self, name: str, published: str) -> Tensor:
        """The labels of all samples."""
        return torch.tensor(
            [int(n) for n in self.case.from_readme(name, r"labels \[([\d, ]+)\]", published).split(",")]
        )

    def loss(self, name: str, logits: Tensor, targets: Tensor) -> Recomputed:
        """The task's loss, averaged over the rows of `logits`."""
        n = torch.tensor(float(len(logits)))
        task = self.task(name)
        return Recomputed(task.losses(logits, targets, dict.fromkeys(task.num_terms(self.batch), n))[name])

    def total(self) -> Tensor:
        raise LookupError("several tasks have no common loss: they are trained in turn")
