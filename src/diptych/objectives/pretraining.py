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
from diptych.objectives.sampling import KeyedChoices, RandomChoices
from diptych.objectives.views import TeacherOutput, Views
from diptych.protocols import ChanceLoss, ComparisonPool, ImageEncoder, RegionEncoder


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

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        """Terms of the loss, under `name`, and of each metric, under "name/metric"."""
        ...

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        """Sums over those terms."""
        ...

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """What the loss is for a model that knows only the prior; `statistics` are facts counted in the data."""
        ...


@runtime_checkable
class ContrastiveObjective(Protocol):
    """An objective that compares samples with one another."""

    def samples_compared(self, among: ComparisonPool) -> int | None:
        """How many samples each one is compared with, itself among them; None where it compares none."""
        ...


class Pretraining(nn.Module):
    """What DDP wraps. `pack`: compute no padding (None: where that is faster); both layouts give the same values. `chunk`: see
    Views.
    """

    def __init__(
        self,
        model: ImageEncoder | RegionEncoder,
        heads: nn.ModuleDict,
        objectives: Sequence[Objective],
        statistics: Mapping[str, float] | None = None,
        max_patches: int | None = None,
        teacher_network: FrozenCNN | None = None,
        pack: bool | None = None,
        tokenizer: FrozenTokenizer | None = None,
        grad_cache_size: int | None = None,
    ):
        super().__init__()
        self.model, self.heads, self.guide, self.tokenizer = model, heads, teacher_network, tokenizer
        self.objectives, self.max_patches, self.pack, self.grad_cache_size = (
            tuple(objectives),
            max_patches,
            pack,
            grad_cache_size,
        )
        self.weights = {o.name: o.weight for o in objectives}
        floors = {o.name: o.chance_loss(statistics or {}) for o in objectives}
        self.chance_losses = {name: floor for name, floor in floors.items() if floor is not None}

    def views(
        self, batch: Batch, draws: RandomChoices | None = None, teacher_output: TeacherOutput | None = None
    ) -> Views:
        """What the model makes of a batch, nothing of it computed yet; `lesson`: what a momentum model says of it."""
        return Views(
            self.model, self.heads, batch, draws or KeyedChoices(batch), self.max_patches, self.guide, teacher_output, self.tokenizer,
            self.grad_cache_size,
        )  # fmt: skip

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """By loss that compares samples: how many each one is compared with; see `step.ComparesSamples`."""
        found = {o.name: o.samples_compared(among) for o in self.objectives if isinstance(o, ContrastiveObjective)}
        return {name: n for name, n in found.items() if n is not None}

    def num_terms(self, batch: Batch, draws: RandomChoices | None = None) -> dict[str, Tensor]:
        """Terms of every loss and metric on this batch; see `step.Step`."""
        views = self.views(batch, draws)
        return {name: count for o in self.objectives for name, count in o.num_terms(views).items()}

    def forward(
        self, batch: Batch, counts: dict[str, Tensor] | None = None, draws: RandomChoices | None = None
    ) -> dict[str, Tensor]:
        """The objectives' means over `counts` terms; over this batch's own where none are given."""
        views = self.views(batch, draws)
        with packing(self.pack):
            return self.losses(views, self.num_terms(batch, draws) if counts is None else counts)

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objectives' means over `counts` terms."""
        totals = {name: total for o in self.objectives for name, total in o.loss_sums(views).items()}
        return {name: total / counts[name].clamp(min=torch.finfo(torch.float32).tiny) for name, total in totals.items()}
