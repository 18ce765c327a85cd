"""Recomputation for VSE++: embeddings, both similarities, and the triplet loss on each."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from diptych.batch import Batch
from diptych.models.vsepp.model import VSEpp
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss, compared
from diptych.objectives.views import Views
from tests.parity.golden_case import Case, Table, unmasked
from tests.parity.recompute.inputs import hinge_batch

ORDER_MARGIN = 0.05  # of order embeddings, from the README of the official code


class Recomputation:
    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        batch = hinge_batch(case)
        self.views = {measure: self._views(measure, batch) for measure in ("cosine", "order")}

    def table(self) -> Table:
        return unmasked(
            {
                "image_emb": lambda: self.views["cosine"].image_pooled[0],
                "text_emb": lambda: self.views["cosine"].text_pooled[0],
                "similarity": lambda: compared(self.views["cosine"]),
                "order_similarity": lambda: compared(self.views["order"]),
                "loss_sum": lambda: self.loss("cosine", self.margin, False),
                "loss_max": lambda: self.hardest,
                "loss_order_sum": lambda: self.loss("order", ORDER_MARGIN, False),
                "loss_order_max": lambda: self.loss("order", ORDER_MARGIN, True),
            }
        )

    def _views(self, measure: str, batch: Batch) -> Views:
        """Views of the same weights, with another similarity measure."""
        assert isinstance(self.step.model, VSEpp)
        model = copy.copy(self.step.model)
        model.measure = measure
        return Pretraining(model, self.step.heads, self.step.objectives).views(batch)

    @property
    def margin(self) -> float:
        return self.case.config["margin"]

    def loss(self, measure: str, margin: float, hardest: bool) -> Tensor:
        """The loss summed over the batch, as in the official code."""
        (objective,) = self.step.objectives
        assert isinstance(objective, TripletLoss)
        return replace(objective, margin=margin, hardest_only=hardest).loss_sums(self.views[measure])["triplet"]

    @cached_property
    def hardest(self) -> Tensor:
        return self.loss("cosine", self.margin, True)

    def total(self) -> Tensor:
        return self.hardest
