"""Image captioning by a causal language modelling loss (BLIP, CoCa)."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diptych.batch import Batch, Image
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput, beam_search
from diptych.objectives.lm import LMLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import CausalDecoder, ChanceLoss, ImageEncoder
from diptych.tasks.common import required


class ImageCaptioner(ImageEncoder, CausalDecoder, Protocol):
    """An image encoder with a causal text decoder."""


class Captioning(nn.Module):
    """A training step: cross entropy of each next token of the captions.

    The first `prompt` tokens of every caption are a prompt and have no loss (BLIP, section 5.2: [DEC] "a picture of",
    four tokens). `label_smoothing`: as in the official code; not in the paper.
    """

    def __init__(self, model: ImageCaptioner, prompt: int = 1, label_smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.objective = LMLoss("caption", label_smoothing=label_smoothing, num_prompt_tokens=prompt)
        self.weights = {"caption": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # the unigram entropy depends on the data

    def views(self, batch: Batch) -> Views:
        """The lazily computed encodings of a batch."""
        return Views(self.model, nn.ModuleDict(), batch, KeyedChoices(batch))

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        required(batch.text, "caption")
        return self.objective.num_terms(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.loss_sums(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def generate(
        self, image: Image, prompt: Int[Tensor, " n"], generation: GenerationConfig, beams: BeamConfig
    ) -> GenerationOutput:
        """A caption of each image, which begins with the prompt's tokens.

        BLIP's official code uses 3 beams and captions of 5 to 20 tokens, prompt included.
        """
        start = prompt.expand(len(image), -1)
        return beam_search(self.model, self.model.encode_image(image), start, generation, beams)
