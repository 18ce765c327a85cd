"""Captioning: what is to be seen in this picture?"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor, nn

from diptych.batch import Batch, Image
from diptych.generation import Beams, Rules, Written, beam_search
from diptych.objectives.lm import NextWords
from diptych.objectives.sampling import Keyed
from diptych.objectives.views import Views
from diptych.protocols import EncodesImage, Floor, Foretells
from diptych.tasks.common import need


class SpeaksOfImages(EncodesImage, Foretells, Protocol):
    """A model that reads images and writes texts."""


class Captioning(nn.Module):
    """A step: cross entropy of each next piece of a caption, but for its first `prompt` pieces, which all begin with
    (BLIP, section 5.2: [DEC] "a picture of", four; the loss itself is smoothed in the official code).
    """

    def __init__(self, model: SpeaksOfImages, prompt: int = 1, smoothing: float = 0.0):
        super().__init__()
        self.model = model
        self.objective = NextWords("caption", smoothing=smoothing, given=prompt)
        self.weights = {"caption": 1.0}
        self.floors: dict[str, Floor] = {}  # the unigram entropy is a fact of the data

    def views(self, batch: Batch) -> Views:
        """What the model makes of a batch, nothing of it computed yet."""
        return Views(self.model, nn.ModuleDict(), batch, Keyed(batch))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        need(batch.text, "caption")
        return self.objective.counts(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.totals(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def write(self, image: Image, prompt: Int[Tensor, " n"], rules: Rules, beams: Beams) -> Written:
        """A caption of each image, the prompt's tokens in front. The official BLIP has 3 beams, 5 to 20 tokens in all."""
        start = prompt.expand(len(image), -1)
        return beam_search(self.model, self.model.encode_image(image), start, rules, beams)
