"""Recomputation for ViLT's downstream tasks."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from diptych.batch import Batch, Image
from diptych.modules.tokens import FusedTokens
from diptych.tasks.nlvr2 import NLVR2
from diptych.tasks.retrieval_training import Retrieval
from diptych.tasks.vqa import ClosedVQA
from tests.parity.golden_case import Case, Recomputed, Table
from tests.parity.recompute.inputs import batch_of, text_of


class VQARecomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, ClosedVQA)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {"vqa_logits": lambda: Recomputed(self.logits), "vqa_loss": lambda: Recomputed(self.losses["vqa"])}

    @cached_property
    def batch(self) -> Batch:
        return batch_of(self.case)

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.batch)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.logits, self.case.input("vqa_targets"), self.step.num_terms(self.batch))


class NLVR2Recomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, NLVR2)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "cls_feats_0": lambda: Recomputed(self.pairs[0].pooled),
            "cls_feats_1": lambda: Recomputed(self.pairs[1].pooled),
            "nlvr2_logits": lambda: Recomputed(self.logits),
            "nlvr2_loss": lambda: Recomputed(self.losses["nlvr2"]),
        }

    @cached_property
    def batch(self) -> Batch:
        return batch_of(self.case, "image_0", image2=Image.from_padded(self.case.input("image_1")))

    @cached_property
    def pairs(self) -> tuple[FusedTokens, FusedTokens]:
        return self.step.pairs(self.batch)

    @cached_property
    def logits(self) -> Tensor:
        return self.step.logits(self.pairs)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.logits, self.case.input("labels"), self.step.num_terms(self.batch))


class RetrievalRecomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, Retrieval)
        self.case, self.step = case, case.step

    def table(self) -> Table:
        return {
            "irtr_scores": lambda: Recomputed(self.scores),
            "irtr_loss": lambda: Recomputed(self.losses["retrieval"]),
            "rank_scores": lambda: Recomputed(
                self.step.score_matrix(Image.from_padded(self.case.input("image")), text_of(self.case))
            ),
        }

    @cached_property
    def batch(self) -> Batch:
        return batch_of(self.case, negative_texts=text_of(self.case, "false_text"))

    @cached_property
    def scores(self) -> Tensor:
        return self.step.candidate_scores(self.batch)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        return self.step.losses(self.scores, self.step.num_terms(self.batch))
