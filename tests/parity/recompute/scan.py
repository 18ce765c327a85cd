"""Recomputation for SCAN: regions, words, and the scores and losses of every attention setting."""

from __future__ import annotations

import copy
from functools import cache, partial
from itertools import product

from torch import Tensor

from diptych.models.scan.checkpoint import VALUES
from diptych.models.scan.model import SCAN
from diptych.modules.similarity import StackedAttention
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.triplet import TripletLoss, compared
from diptych.objectives.views import Views
from tests.parity.golden_case import Case, Table, unmasked
from tests.parity.recompute.inputs import hinge_batch, padded

LAMBDA_SOFTMAX, LAMBDA_LSE = {"t2i": 9.0, "i2t": 4.0}, {"t2i": 6.0, "i2t": 5.0}
"""lambda_softmax and lambda_lse of each direction, as published, if the golden does not state them."""
NORMS = ("clipped_l2norm", "softmax", "l2norm", "clipped", "no_norm")
PUBLISHED_NORM = "clipped_l2norm"
AGGREGATES, KINDS = ("LogSumExp", "Mean", "Max", "Sum"), ("sum", "max")


class Recomputation:
    """Losses are those of the published norm."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        self.batch = hinge_batch(case)
        self.views = cache(self._views)

    def table(self) -> Table:
        embedded = self.views("t2i", "LogSumExp", PUBLISHED_NORM)
        table: Table = {"region_emb": lambda: padded(embedded.image), "word_emb": lambda: padded(embedded.text)}
        for direction, aggregate in product(LAMBDA_SOFTMAX, AGGREGATES):
            scores = {
                f"score_{direction}_{aggregate}_{norm}": partial(self.score, direction, aggregate, norm)
                for norm in NORMS
            }
            losses = {
                f"loss_{direction}_{aggregate}_{kind}": partial(self.loss, direction, aggregate, kind) for kind in KINDS
            }
            table |= unmasked(scores | losses)
        return table

    def score(self, direction: str, aggregate: str, norm: str) -> Tensor:
        return compared(self.views(direction, aggregate, norm))

    def _views(self, direction: str, aggregate: str, norm: str) -> Views:
        """Views of the same weights with other attention settings."""
        assert isinstance(self.step.model, SCAN)
        model = copy.copy(self.step.model)
        lambda_softmax = self._setting(direction, aggregate, "lambda_softmax", LAMBDA_SOFTMAX[direction])
        lambda_lse = self._setting(direction, aggregate, "lambda_lse", LAMBDA_LSE[direction])
        model.attend = StackedAttention(
            VALUES[direction], VALUES.get(norm, norm), VALUES[aggregate], lambda_softmax, lambda_lse
        )
        return Pretraining(model, self.step.heads, self.step.objectives).views(self.batch)

    def _setting(self, direction: str, aggregate: str, option: str, published: float) -> float:
        """A setting from the golden's config (for one direction or both), or from its README."""
        value = self.case.config.get(
            option,
            self.case.from_readme(
                f"score_{direction}_{aggregate}_{PUBLISHED_NORM}", rf"\b{option} ([\d.]+)", str(published)
            ),
        )
        return float(value[direction] if isinstance(value, dict) else value)

    def loss(self, direction: str, aggregate: str, kind: str) -> Tensor:
        """The loss summed over the batch, as in the official code, of all negatives ("sum") or the hardest ("max")."""
        views = self.views(direction, aggregate, PUBLISHED_NORM)
        return TripletLoss(margin=self.case.config["margin"], hardest_only=kind == "max").loss_sums(views)["triplet"]

    def total(self) -> Tensor:
        """The loss with the default settings of the model."""
        return self.loss("t2i", "LogSumExp", "max")
