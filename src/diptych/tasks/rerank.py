"""Image-text retrieval in two stages: cosines choose candidates, which are then fused and scored (ALBEF, BLIP)."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.heads import Contrast, Match
from diptych.inputs import Image, Text
from diptych.models.verbs import Aligns, Fuses
from diptych.tasks.retrieval import judged
from diptych.tokens import Tokens

FILL = -100.0
"""The score of what was no candidate (official codes)."""


@runtime_checkable
class AlignsAndFuses(Aligns, Fuses, Protocol):
    """A model whose sides can be compared, and then fused."""


class Scores(NamedTuple):
    """Higher is better; FILL where a pair was no candidate. A pair that is one in both has one score."""

    of_texts: Float[Tensor, "images texts"]
    of_images: Float[Tensor, "texts images"]


class Reranking(nn.Module):
    """Each image scores the `most` texts that are most like it, each text the `most` images (ALBEF: 256 on COCO, 128 on
    Flickr30k), by the logit of a match, to which `cosine` adds the cosine (BLIP, official code).
    """

    def __init__(self, model: AlignsAndFuses, contrast: Contrast, match: Match, most: int, cosine: bool = False):
        super().__init__()
        self.model, self.contrast, self.match = model, contrast, match
        self.most, self.cosine = most, cosine

    @torch.no_grad()
    def forward(self, texts: Text, images: Image, pairs: int = 256) -> Scores:
        """Each side is read once by itself; `pairs` are fused at a time."""
        text, image = self.model.encode_text(texts), self.model.encode_image(images)
        of_text = self.contrast.of_text(self.model.unimodal(text)[0])
        cosines = (self.contrast.of_image(self.model.unimodal(image)[0]) @ of_text.T).float()
        image_of, text_of = candidates(cosines, self.most)
        of_texts = torch.full_like(cosines, FILL)
        of_texts[image_of, text_of] = self._scores(text, image, text_of, image_of, cosines, pairs)
        text_of, image_of = candidates(cosines.T, self.most)
        of_images = torch.full_like(cosines.T, FILL)
        of_images[text_of, image_of] = self._scores(text, image, text_of, image_of, cosines, pairs)
        return Scores(of_texts, of_images)

    def _scores(
        self, text: Tokens, image: Tokens, which: Tensor, shown: Tensor, cosines: Tensor, pairs: int
    ) -> Float[Tensor, " pairs"]:
        """Of the texts `which` beside the images `shown`."""
        logits = judged(self.model, lambda pooled: self.match(pooled)[:, 1], text, image, which, shown, pairs)
        return logits + cosines[shown, which] if self.cosine else logits


def candidates(
    cosines: Float[Tensor, "asking asked"], most: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Row and column of each row's `most` largest."""
    best = cosines.topk(min(most, cosines.shape[1]), 1).indices
    return torch.arange(len(best), device=best.device).repeat_interleave(best.shape[1]), best.flatten()
