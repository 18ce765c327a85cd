"""Pretraining: a model, its heads and its objectives as one module from a batch to named losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.visual_tokenizer import FrozenTokenizer
from diptych.modules.tokens import packing
from diptych.objectives.sampling import Draws, Keyed
from diptych.objectives.views import Lesson, Views
from diptych.protocols import Among, EncodesImage, EncodesRegions, Floor


@runtime_checkable
class Objective(Protocol):
    """A function of the views of a batch; it owns no weights.

    It gives *totals*, and says beforehand how many terms they sum over: means are taken over the global batch.
    """

    @property
    def name(self) -> str:
        """What its loss is called in weights, floors and logs."""
        ...

    @property
    def weight(self) -> float:
        """Its factor in the loss that is trained."""
        ...

    def counts(self, views: Views) -> dict[str, Tensor]:
        """Terms of the loss, under `name`, and of each metric, under "name/metric"."""
        ...

    def totals(self, views: Views) -> dict[str, Tensor]:
        """Sums over those terms."""
        ...

    def floor(self, statistics: Mapping[str, float]) -> Floor | None:
        """What the loss is for a model that knows only the prior; `statistics` are facts counted in the data."""
        ...


@runtime_checkable
class Comparing(Protocol):
    """An objective that compares samples with one another."""

    def samples_compared(self, among: Among) -> int | None:
        """How many samples each one is compared with, itself among them; None where it compares none."""
        ...


class Pretraining(nn.Module):
    """What DDP wraps. `pack`: compute no padding (None: where that is faster); both layouts give the same values. `chunk`: see
    Views.
    """

    def __init__(
        self,
        model: EncodesImage | EncodesRegions,
        heads: nn.ModuleDict,
        objectives: Sequence[Objective],
        statistics: Mapping[str, float] | None = None,
        most_patches: int | None = None,
        guide: FrozenCNN | None = None,
        pack: bool | None = None,
        tokenizer: FrozenTokenizer | None = None,
        chunk: int | None = None,
    ):
        super().__init__()
        self.model, self.heads, self.guide, self.tokenizer = model, heads, guide, tokenizer
        self.objectives, self.most_patches, self.pack, self.chunk = tuple(objectives), most_patches, pack, chunk
        self.weights = {o.name: o.weight for o in objectives}
        floors = {o.name: o.floor(statistics or {}) for o in objectives}
        self.floors = {name: floor for name, floor in floors.items() if floor is not None}

    def views(self, batch: Batch, draws: Draws | None = None, lesson: Lesson | None = None) -> Views:
        """What the model makes of a batch, nothing of it computed yet; `lesson`: what a momentum model says of it."""
        return Views(
            self.model, self.heads, batch, draws or Keyed(batch), self.most_patches, self.guide, lesson, self.tokenizer,
            self.chunk,
        )  # fmt: skip

    def samples_compared(self, among: Among) -> dict[str, int]:
        """By loss that compares samples: how many each one is compared with; see `step.ComparesSamples`."""
        found = {o.name: o.samples_compared(among) for o in self.objectives if isinstance(o, Comparing)}
        return {name: n for name, n in found.items() if n is not None}

    def counts(self, batch: Batch, draws: Draws | None = None) -> dict[str, Tensor]:
        """Terms of every loss and metric on this batch; see `step.Step`."""
        views = self.views(batch, draws)
        return {name: count for o in self.objectives for name, count in o.counts(views).items()}

    def forward(
        self, batch: Batch, counts: dict[str, Tensor] | None = None, draws: Draws | None = None
    ) -> dict[str, Tensor]:
        """The objectives' means over `counts` terms; over this batch's own where none are given."""
        views = self.views(batch, draws)
        with packing(self.pack):
            return self.losses(views, self.counts(batch, draws) if counts is None else counts)

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objectives' means over `counts` terms."""
        totals = {name: total for o in self.objectives for name, total in o.totals(views).items()}
        return {name: total / counts[name].clamp(min=torch.finfo(torch.float32).tiny) for name, total in totals.items()}
