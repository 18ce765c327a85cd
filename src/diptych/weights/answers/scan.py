"""What of a SCAN golden can be recomputed: regions, words, and scores and hinges of every way to attend."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache

from torch import Tensor

from diptych.layers.stacked_attention import StackedAttention
from diptych.models.scan import SCAN
from diptych.objectives.hinge import Hinge, compared
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.views import Views
from diptych.weights.answers.given import hinge_batch, on_canvas
from diptych.weights.golden import Answer, Case

ASKING = {
    "t2i": StackedAttention("text", sharpness=9.0, peak=6.0),
    "i2t": StackedAttention("image", sharpness=4.0, peak=5.0),
}
"""The official settings of the two directions."""
NORMS = {"clipped_l2norm": "clipped_l2", "softmax": "softmax", "l2norm": "l2", "clipped": "clipped", "no_norm": "none"}
NAME = re.compile(r"(score|loss)_(t2i|i2t)_(LogSumExp|Mean|Max|Sum)_(.+)")


class Answers:
    """A loss is on the scores of the published norm."""

    def __init__(self, case: Case):
        assert isinstance(case.step, Pretraining)
        self.case, self.step = case, case.step
        self.batch = hinge_batch(case)
        self.views = cache(self._views)

    def find(self, name: str) -> Callable[[], Answer]:
        embedded = self.views("t2i", "LogSumExp", "clipped_l2norm")
        if name == "region_emb":
            return lambda: on_canvas(embedded.image)
        if name == "word_emb":
            return lambda: on_canvas(embedded.text)
        found = NAME.fullmatch(name)
        if found is None or found[4] not in (NORMS if found[1] == "score" else ("sum", "max")):
            raise LookupError("no one knows how")
        what, way, aggregate, last = found.groups()
        if what == "score":
            return lambda: Answer(compared(self.views(way, aggregate, last)))
        return lambda: Answer(self.loss(way, aggregate, last == "max"))

    def _views(self, way: str, aggregate: str, norm: str) -> Views:
        """The same weights, attending another way."""
        assert isinstance(self.step.model, SCAN)
        model, attend = copy.copy(self.step.model), ASKING[way]
        model.attend = StackedAttention(attend.asking, NORMS[norm], aggregate.lower(), attend.sharpness, attend.peak)
        return Pretraining(model, self.step.heads, self.step.objectives).views(self.batch)

    def loss(self, way: str, aggregate: str, hardest: bool) -> Tensor:
        """Summed over the batch, as the official code has it."""
        views = self.views(way, aggregate, "clipped_l2norm")
        return Hinge(margin=self.case.config["margin"], hardest=hardest).totals(views)["hinge"]

    def total(self) -> Tensor:
        """Of the setting that the model begins with."""
        return self.loss("t2i", "LogSumExp", True)
