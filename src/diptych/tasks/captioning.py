"""Captioning: what is to be seen in this picture?"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diptych.batch import Batch, Image
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search
from diptych.objectives.lm import LM
from diptych.objectives.sampling import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import CausalDecoder, ChanceLoss, ImageEncoder
from diptych.tasks.common import required


class ImageCaptioner(ImageEncoder, CausalDecoder, Protocol):
    """A model that reads images and writes texts."""


class Captioning(nn.Module):
    """A step: cross entropy of each next piece of a caption, but for its first `prompt` pieces, which all begin with
    (BLIP, section 5.2: [DEC] "a picture of", four; the loss itself is smoothed in the official code).
    """

    def __init__(self, model: ImageCaptioner, prompt: int = 1, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.objective = LM("caption", label_smoothing=label_smoothing, given=prompt)
        self.weights = {"caption": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the unigram entropy is a fact of the data

    def views(self, batch: Batch) -> Views:
        """What the model makes of a batch, nothing of it computed yet."""
        return Views(self.model, nn.ModuleDict(), batch, KeyedChoices(batch))

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        required(batch.text, "caption")
        return self.objective.num_terms(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.loss_sums(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def write(
        self, image: Image, prompt: Int[Tensor, " n"], rules: GenerationConfig, beams: BeamConfig
    ) -> GenerationOutput:
        """A caption of each image, the prompt's tokens in front. The official BLIP has 3 beams, 5 to 20 tokens in all."""
        start = prompt.expand(len(image), -1)
        return beam_search(self.model, self.model.encode_image(image), start, rules, beams)
