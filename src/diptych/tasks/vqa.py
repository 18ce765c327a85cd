"""Visual question answering as classification: which of the training set's answers? (VQA v2, closed)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diptych.heads import Classify
from diptych.inputs import Batch
from diptych.layers.init import init_transformer
from diptych.models.verbs import Fuses
from diptych.step import Floor
from diptych.tasks.single import need, pictured, sample_counts


class ClosedVQA(nn.Module):
    """A step: binary cross entropy with soft scores ``labels["targets"]`` (b, answers), summed over answers (ViLT, 4.2).

    `head`: in place of ViLT's. `name`: what its loss is called. `prior`: each answer's mean score in training. ViLT's head
    then begins by saying so, where it would need some hundred steps to learn it, and the loss has a floor. Raises ValueError
    for a prior and a head of another kind, which could not say so.
    Differs: the official code begins with a probability of a half for every answer.
    """

    def __init__(
        self,
        model: Fuses,
        width: int,
        answers: int,
        head: nn.Module | None = None,
        name: str = "vqa",
        prior: Sequence[float] | None = None,
    ):
        super().__init__()
        self.model = model
        self.head = (head or Classify(width, 2 * width, answers)).apply(init_transformer)
        self.name, self.weights = name, {name: 1.0}
        self.floors: dict[str, Floor] = {}
        if prior is not None:
            if not isinstance(self.head, Classify):
                raise ValueError(f"a {type(self.head).__name__} cannot begin with a prior; leave prior or head out")
            known = torch.tensor(prior, device="cpu").clamp(1e-6, 1 - 1e-6)
            self.head.expect(known)
            alone = F.binary_cross_entropy(known, known, reduction="sum").item()
            self.floors[name] = Floor(alone, "prior of the answers", "neither question nor picture is read yet")

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, self.name, f"{self.name}/score")

    def logits(self, batch: Batch) -> Float[Tensor, "b answers"]:
        text = self.model.encode_text(need(batch.text, "question"))
        image = pictured(self.model, batch)
        return self.head(self.model.fuse(text, image).pooled).float()

    def losses(self, logits: Tensor, targets: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        score = targets.gather(1, logits.argmax(1, keepdim=True)).sum()
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        name, metric = self.name, f"{self.name}/score"
        return {name: loss / counts[name], metric: score.detach() / counts[metric]}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.logits(batch), batch.labels["targets"], counts)
