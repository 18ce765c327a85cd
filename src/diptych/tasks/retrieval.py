"""Image-text retrieval by scoring pairs: which of these texts describes this image, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.heads import Match, Rank
from diptych.inputs import Batch, Image, Text
from diptych.layers.init import init_transformer
from diptych.models.verbs import Fuses
from diptych.step import Floor
from diptych.tasks.single import need, pictured, sample_counts
from diptych.tokens import Tokens


class Retrieval(nn.Module):
    """A step: cross entropy of the true text among it and `false` false ones (ViLT, 4.2: fifteen).

    The score starts as pre-training's logit of a match: `start_from` copies that row, as the official code does.
    """

    def __init__(self, model: Fuses, width: int, false: int = 15):
        super().__init__()
        self.model = model
        self.rank = Rank(width)
        self.rank.apply(init_transformer)
        self.weights = {"retrieval": 1.0}
        self.floors = {
            "retrieval": Floor(math.log(1 + false), "loss of every text alike", "texts and image are not yet compared")
        }

    @torch.no_grad()
    def start_from(self, match: Match) -> None:
        """Begins the score as pre-training's logit of a match."""
        self.rank.linear.weight.copy_(match.linear.weight[1:])
        self.rank.linear.bias.copy_(match.linear.bias[1:])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "retrieval", "retrieval/accuracy")

    def candidates(self, batch: Batch) -> Float[Tensor, "b candidates"]:
        """Each image's score with its own text, then with its false ones."""
        image = pictured(self.model, batch)
        true = self.score(self.model.encode_text(need(batch.text, "text")), image)
        texts = self.model.encode_text(need(batch.false_texts, "false texts"))
        owner = torch.arange(len(batch), device=batch.ids.device).repeat_interleave(len(texts) // len(batch))
        false = self.score(texts, image.take(owner))
        return torch.cat([true[:, None], false.view(len(batch), -1)], 1)

    def score(self, text: Tokens, image: Tokens) -> Float[Tensor, " b"]:
        """How well each text fits the image beside it."""
        return self.rank(self.model.fuse(text, image).pooled).float()

    def losses(self, scores: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        first = scores.new_zeros(len(scores), dtype=torch.long)
        right = (scores.argmax(1) == 0).sum().float()
        return {
            "retrieval": F.cross_entropy(scores, first, reduction="sum") / counts["retrieval"],
            "retrieval/accuracy": right.detach() / counts["retrieval/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.candidates(batch), counts)

    def matrix(self, texts: Text, images: Image, pairs: int = 256) -> Float[Tensor, "images texts"]:
        """Every image with every text."""
        return score_matrix(self.model, self.rank, texts, images, pairs)


Summary = Callable[[Tensor], Tensor]
"""A score of each pooled pair."""


def score_matrix(
    model: Fuses, summary: Summary, texts: Text, images: Image, pairs: int = 256
) -> Float[Tensor, "images texts"]:
    """Every image with every text. Each is embedded once; `pairs` are fused at a time."""
    with torch.no_grad():
        text, image = model.encode_text(texts), model.encode_image(images)
    index = torch.arange(len(images) * len(texts), device=texts.ids.device)
    scores = judged(model, summary, text, image, index % len(texts), index // len(texts), pairs)
    return scores.view(len(images), len(texts))


@torch.no_grad()
def judged(
    model: Fuses, summary: Summary, text: Tokens, image: Tokens, which: Int[Tensor, " k"], shown: Int[Tensor, " k"],
    pairs: int = 256,
) -> Float[Tensor, " k"]:  # fmt: skip
    """The scores of the texts `which` beside the images `shown`, `pairs` of them fused at a time. In full precision, whatever
    they were fused in: rounded scores would be equal, and equals rank last.
    """
    parts = zip(which.split(pairs), shown.split(pairs), strict=True)
    return torch.cat([_exact(summary, model.fuse(text.take(a), image.take(b)).pooled) for a, b in parts])


def _exact(summary: Summary, pooled: Tensor) -> Float[Tensor, " pairs"]:
    with torch.autocast(pooled.device.type, enabled=False):
        return summary(pooled.float())
