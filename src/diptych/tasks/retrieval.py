"""Image-text retrieval by towers: each side is read once by itself, and cosines are compared.

Image-text retrieval by scoring pairs: which of these texts describes this image, and the other way round.

Image-text retrieval in two stages: cosines choose candidates, which are then fused and scored (ALBEF, BLIP).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.modules.heads import ITCHead, ITMHead, RankingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.itc import ITC
from diptych.objectives.sampling import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, DualEncoder, FusionEncoder
from diptych.tasks.common import encode_images, required, sample_counts


class ContrastRetrieval(nn.Module):
    """A step: contrast of the model's first readout over the batch on all ranks (VLMo, 4.1; BEiT-3, table 10)."""

    def __init__(self, model: DualEncoder, contrast: ITCHead):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({"contrast": contrast})
        self.objective = ITC(name="retrieval")
        self.weights = {"retrieval": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # ln of the candidates, of which a batch may have any number

    def views(self, batch: Batch) -> Views:
        """What the model makes of a batch, nothing of it computed yet."""
        return Views(self.model, self.heads, batch, KeyedChoices(batch))

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """See `step.ComparesSamples`."""
        return {"retrieval": self.objective.samples_compared(among)}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective.num_terms(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.loss_sums(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def score_matrix(self, texts: Text, images: Image) -> Float[Tensor, "images texts"]:
        """The cosine of every image with every text."""
        contrast: ITCHead = self.heads["contrast"]  # type: ignore[assignment]
        image = contrast.project_image(self.model.pooled_features(self.model.encode_image(images))[0])
        text = contrast.project_text(self.model.pooled_features(self.model.encode_text(texts))[0])
        return (image @ text.T).float()


class Retrieval(nn.Module):
    """A step: cross entropy of the true text among it and `false` false ones (ViLT, 4.2: fifteen).

    The score starts as pre-training's logit of a match: `start_from` copies that row, as the official code does.
    """

    def __init__(self, model: FusionEncoder, dim: int, false: int = 15):
        super().__init__()
        self.model = model
        self.rank = RankingHead(dim)
        self.rank.apply(init_transformer)
        self.weights = {"retrieval": 1.0}
        self.chance_losses = {
            "retrieval": ChanceLoss(
                math.log(1 + false), "loss of every text alike", "texts and image are not yet compared"
            )
        }

    @torch.no_grad()
    def init_from(self, match: ITMHead) -> None:
        """Begins the score as pre-training's logit of a match."""
        self.rank.linear.weight.copy_(match.linear.weight[1:])
        self.rank.linear.bias.copy_(match.linear.bias[1:])

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "retrieval", "retrieval/accuracy")

    def candidates(self, batch: Batch) -> Float[Tensor, "b candidates"]:
        """Each image's score with its own text, then with its false ones."""
        image = encode_images(self.model, batch)
        true = self.score(self.model.encode_text(required(batch.text, "text")), image)
        texts = self.model.encode_text(required(batch.negative_texts, "false texts"))
        owner = torch.arange(len(batch), device=batch.ids.device).repeat_interleave(len(texts) // len(batch))
        false = self.score(texts, image.index_samples(owner))
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

    def score_matrix(self, texts: Text, images: Image, pairs: int = 256) -> Float[Tensor, "images texts"]:
        """Every image with every text."""
        return score_matrix(self.model, self.rank, texts, images, pairs)


Summary = Callable[[Tensor], Tensor]
"""A score of each pooled pair."""


def score_matrix(
    model: FusionEncoder, summary: Summary, texts: Text, images: Image, pairs: int = 256
) -> Float[Tensor, "images texts"]:
    """Every image with every text. Each is embedded once; `pairs` are fused at a time."""
    with torch.no_grad():
        text, image = model.encode_text(texts), model.encode_image(images)
    index = torch.arange(len(images) * len(texts), device=texts.ids.device)
    scores = score_pairs(model, summary, text, image, index % len(texts), index // len(texts), pairs)
    return scores.view(len(images), len(texts))


@torch.no_grad()
def score_pairs(
    model: FusionEncoder, summary: Summary, text: Tokens, image: Tokens, which: Int[Tensor, " k"], shown: Int[Tensor, " k"],
    pairs: int = 256,
) -> Float[Tensor, " k"]:  # fmt: skip
    """The scores of the texts `which` beside the images `shown`, `pairs` of them fused at a time. In full precision, whatever
    they were fused in: rounded scores would be equal, and equals rank last.
    """
    parts = zip(which.split(pairs), shown.split(pairs), strict=True)
    return torch.cat(
        [_exact(summary, model.fuse(text.index_samples(a), image.index_samples(b)).pooled) for a, b in parts]
    )


def _exact(summary: Summary, pooled: Tensor) -> Float[Tensor, " pairs"]:
    with torch.autocast(pooled.device.type, enabled=False):
        return summary(pooled.float())


FILL = -100.0
"""The score of what was no candidate (official codes)."""


@runtime_checkable
class DualAndFusionEncoder(DualEncoder, FusionEncoder, Protocol):
    """A model whose sides can be compared, and then fused."""


class Scores(NamedTuple):
    """Higher is better; FILL where a pair was no candidate. A pair that is one in both has one score."""

    of_texts: Float[Tensor, "images texts"]
    of_images: Float[Tensor, "texts images"]


class RerankedRetrieval(nn.Module):
    """Each image scores the `most` texts that are most like it, each text the `most` images (ALBEF: 256 on COCO, 128 on
    Flickr30k), by the logit of a match, to which `cosine` adds the cosine (BLIP, official code).
    """

    def __init__(self, model: DualAndFusionEncoder, contrast: ITCHead, match: ITMHead, most: int, cosine: bool = False):
        super().__init__()
        self.model, self.contrast, self.match = model, contrast, match
        self.most, self.cosine = most, cosine

    @torch.no_grad()
    def forward(self, texts: Text, images: Image, pairs: int = 256) -> Scores:
        """Each side is read once by itself; `pairs` are fused at a time."""
        text, image = self.model.encode_text(texts), self.model.encode_image(images)
        of_text = self.contrast.project_text(self.model.pooled_features(text)[0])
        cosines = (self.contrast.project_image(self.model.pooled_features(image)[0]) @ of_text.T).float()
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
        logits = score_pairs(self.model, lambda pooled: self.match(pooled)[:, 1], text, image, which, shown, pairs)
        return logits + cosines[shown, which] if self.cosine else logits


def candidates(
    cosines: Float[Tensor, "asking asked"], most: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Row and column of each row's `most` largest."""
    best = cosines.topk(min(most, cosines.shape[1]), 1).indices
    return torch.arange(len(best), device=best.device).repeat_interleave(best.shape[1]), best.flatten()
