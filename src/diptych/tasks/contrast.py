"""Image-text retrieval by towers: each side is read once by itself, and cosines are compared."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.heads import Contrast
from diptych.inputs import Batch, Image, Text
from diptych.models.verbs import Aligns
from diptych.objectives.draws import Keyed
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.views import Views
from diptych.step import Among, Floor


class ContrastRetrieval(nn.Module):
    """A step: contrast of the model's first readout over the batch on all ranks (VLMo, 4.1; BEiT-3, table 10)."""

    def __init__(self, model: Aligns, contrast: Contrast):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({"contrast": contrast})
        self.objective = ImageTextContrast(name="retrieval")
        self.weights = {"retrieval": 1.0}
        self.floors: dict[str, Floor] = {}  # ln of the candidates, of which a batch may have any number

    def views(self, batch: Batch) -> Views:
        """What the model makes of a batch, nothing of it computed yet."""
        return Views(self.model, self.heads, batch, Keyed(batch))

    def compared_samples(self, among: Among) -> dict[str, int]:
        """See `step.ComparesSamples`."""
        return {"retrieval": self.objective.compared_samples(among)}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective.counts(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.totals(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def matrix(self, texts: Text, images: Image) -> Float[Tensor, "images texts"]:
        """The cosine of every image with every text."""
        contrast: Contrast = self.heads["contrast"]  # type: ignore[assignment]
        image = contrast.of_image(self.model.unimodal(self.model.encode_image(images))[0])
        text = contrast.of_text(self.model.unimodal(self.model.encode_text(texts))[0])
        return (image @ text.T).float()
