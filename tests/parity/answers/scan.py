"""What of a SCAN golden can be recomputed: regions, words, and scores and hinges of every way to attend."""

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
from tests.parity.answers.given import hinge_batch, on_canvas
from tests.parity.golden_case import Case, Table, answered

SHARPNESS, PEAK = {"t2i": 9.0, "i2t": 4.0}, {"t2i": 6.0, "i2t": 5.0}
"""Of each way to ask, as published: for a golden that does not say its own."""
NORMS = ("clipped_l2norm", "softmax", "l2norm", "clipped", "no_norm")
PUBLISHED_NORM = "clipped_l2norm"
AGGREGATES, KINDS = ("LogSumExp", "Mean", "Max", "Sum"), ("sum", "max")


class Answers:
    """A loss is on the scores of the published norm."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        self.batch = hinge_batch(case)
        self.views = cache(self._views)

    def table(self) -> Table:
        embedded = self.views("t2i", "LogSumExp", PUBLISHED_NORM)
        table: Table = {"region_emb": lambda: on_canvas(embedded.image), "word_emb": lambda: on_canvas(embedded.text)}
        for way, aggregate in product(SHARPNESS, AGGREGATES):
            scores = {f"score_{way}_{aggregate}_{norm}": partial(self.score, way, aggregate, norm) for norm in NORMS}
            losses = {f"loss_{way}_{aggregate}_{kind}": partial(self.loss, way, aggregate, kind) for kind in KINDS}
            table |= answered(scores | losses)
        return table

    def score(self, way: str, aggregate: str, norm: str) -> Tensor:
        return compared(self.views(way, aggregate, norm))

    def _views(self, way: str, aggregate: str, norm: str) -> Views:
        """The same weights, attending another way."""
        assert isinstance(self.step.model, SCAN)
        model = copy.copy(self.step.model)
        sharpness = self._said(way, aggregate, "lambda_softmax", SHARPNESS[way])
        peak = self._said(way, aggregate, "lambda_lse", PEAK[way])
        model.attend = StackedAttention(VALUES[way], VALUES.get(norm, norm), VALUES[aggregate], sharpness, peak)
        return Pretraining(model, self.step.heads, self.step.objectives).views(self.batch)

    def _said(self, way: str, aggregate: str, option: str, published: float) -> float:
        """As the golden's config tells it, for one way or both, or its README of the scores."""
        told = self.case.config.get(
            option, self.case.said(f"score_{way}_{aggregate}_{PUBLISHED_NORM}", rf"\b{option} ([\d.]+)", str(published))
        )
        return float(told[way] if isinstance(told, dict) else told)

    def loss(self, way: str, aggregate: str, kind: str) -> Tensor:
        """Summed over the batch, as the official code has it; `kind`: of all negatives ("sum") or the hardest ("max")."""
        views = self.views(way, aggregate, PUBLISHED_NORM)
        return TripletLoss(margin=self.case.config["margin"], hardest_only=kind == "max").loss_sums(views)["triplet"]

    def total(self) -> Tensor:
        """Of the setting that the model begins with."""
        return self.loss("t2i", "LogSumExp", "max")
