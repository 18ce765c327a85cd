"""Pre-training step: a model, its heads and its objectives as one module, from a batch to named losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diptych.batch import Batch
from diptych.encoders.efficientnet import FrozenCNN
from diptych.encoders.visual_tokenizer import FrozenTokenizer
from diptych.modules.tokens import packing
from diptych.objectives.random_choices import KeyedChoices, RandomChoices
from diptych.objectives.views import TeacherOutput, Views
from diptych.protocols import ChanceLoss, ComparisonPool, ImageEncoder, RegionEncoder


@runtime_checkable
class Objective(Protocol):
    """A pre-training loss, as a function of the views of a batch; it has no weights.

    It returns *sums*, and their numbers of terms separately and in advance: means are taken over the global batch.
    """

    @property
    def name(self) -> str:
        """The name of its loss in weights, chance losses and logs."""
        ...

    @property
    def weight(self) -> float:
        """Its weight in the total loss."""
        ...

    def num_terms(self, views: Views) -> dict[str, Tensor]:
        """Numbers of terms of the loss (key `name`) and of each metric (key "name/metric")."""
        ...

    def loss_sums(self, views: Views) -> dict[str, Tensor]:
        """Sums of the loss and of each metric over these terms."""
        ...

    def chance_loss(self, statistics: Mapping[str, float]) -> ChanceLoss | None:
        """The loss of a model that knows only the label prior; `statistics` are counted in the training data."""
        ...


@runtime_checkable
class ContrastiveObjective(Protocol):
    """An objective that contrasts samples of a batch."""

    def samples_compared(self, among: ComparisonPool) -> int | None:
        """How many candidates each sample is contrasted with, itself included; None if it is not contrasted."""
        ...


class Pretraining(nn.Module):
    """The module that DDP wraps: model, heads and objectives.

    `pack`: compute without padding; the losses are the same. `statistics`: see
    `Objective.chance_loss`. Other arguments: see `Views`.
    """

    def __init__(
        self,
        model: ImageEncoder | RegionEncoder,
        heads: nn.ModuleDict,
        objectives: Sequence[Objective],
        statistics: Mapping[str, float] | None = None,
        max_patches: int | None = None,
        teacher_network: FrozenCNN | None = None,
        pack: bool = True,
        tokenizer: FrozenTokenizer | None = None,
        grad_cache_size: int | None = None,
    ):
        super().__init__()
        self.model, self.heads = model, heads
        self.teacher_network, self.tokenizer = teacher_network, tokenizer
        self.objectives, self.max_patches = tuple(objectives), max_patches
        self.pack, self.grad_cache_size = pack, grad_cache_size
        self.weights = {o.name: o.weight for o in objectives}
        chance_losses = {o.name: o.chance_loss(statistics or {}) for o in objectives}
        self.chance_losses = {name: loss for name, loss in chance_losses.items() if loss is not None}

    def views(
        self, batch: Batch, draws: RandomChoices | None = None, teacher_output: TeacherOutput | None = None
    ) -> Views:
        """The views of a batch, not yet computed; `teacher_output`: a momentum model's views of it."""
        return Views(
            self.model,
            self.heads,
            batch,
            draws or KeyedChoices(batch),
            self.max_patches,
            self.teacher_network,
            teacher_output,
            self.tokenizer,
            self.grad_cache_size,
        )

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """Number of candidates of each sample, by contrastive loss; see `protocols.ContrastiveStep`."""
        numbers = {o.name: o.samples_compared(among) for o in self.objectives if isinstance(o, ContrastiveObjective)}
        return {name: n for name, n in numbers.items() if n is not None}

    def num_terms(self, batch: Batch, draws: RandomChoices | None = None) -> dict[str, Tensor]:
        """The number of terms of every loss and metric on this batch; see `protocols.TrainStep`."""
        views = self.views(batch, draws)
        return {name: count for o in self.objectives for name, count in o.num_terms(views).items()}

    def forward(
        self, batch: Batch, counts: dict[str, Tensor] | None = None, draws: RandomChoices | None = None
    ) -> dict[str, Tensor]:
        """Losses and metrics: sums over this batch divided by `counts` (default: this batch's numbers of terms)."""
        views = self.views(batch, draws)
        with packing(self.pack):
            return self.losses(views, self.num_terms(batch, draws) if counts is None else counts)

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses and metrics: sums over this batch divided by `counts`."""
        sums = {name: total for o in self.objectives for name, total in o.loss_sums(views).items()}
        return {name: total / counts[name].clamp(min=torch.finfo(torch.float32).tiny) for name, total in sums.items()}
