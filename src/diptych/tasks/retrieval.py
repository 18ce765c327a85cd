"""Image-text retrieval: by a dual encoder, by scoring fused pairs, or in two stages.

`ContrastRetrieval` compares separately encoded images and texts by their cosine; `Retrieval` scores fused pairs by a
ranking head; `RerankedRetrieval` fuses and scores only the candidates with the largest cosines (ALBEF, BLIP).
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
from diptych.objectives.itc import ITCLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, DualEncoder, FusionEncoder
from diptych.tasks.common import encode_images, required, sample_counts


class ContrastRetrieval(nn.Module):
    """A training step: ITC loss of the model's first ITC branch over the batch on all ranks.

    Source: VLMo, section 4.1; BEiT-3, table 10.
    """

    def __init__(self, model: DualEncoder, contrast: ITCHead):
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({"itc": contrast})
        self.objective = ITCLoss(name="retrieval")
        self.weights = {"retrieval": 1.0}
        self.chance_losses: dict[str, ChanceLoss] = {}  # ln(number of candidates), which depends on the batch

    def views(self, batch: Batch) -> Views:
        """The lazily computed encodings of a batch."""
        return Views(self.model, self.heads, batch, KeyedChoices(batch))

    def samples_compared(self, among: ComparisonPool) -> dict[str, int]:
        """See `protocols.ContrastiveStep`."""
        return {"retrieval": self.objective.samples_compared(among)}

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective.num_terms(self.views(batch))

    def losses(self, views: Views, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: total / counts[name] for name, total in self.objective.loss_sums(views).items()}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.views(batch), counts)

    @torch.no_grad()
    def score_matrix(self, images: Image, texts: Text) -> Float[Tensor, "images texts"]:
        """The cosine of every image with every text."""
        contrast: ITCHead = self.heads["itc"]  # type: ignore[assignment]
        image = contrast.project_image(self.model.pooled_features(self.model.encode_image(images))[0])
        text = contrast.project_text(self.model.pooled_features(self.model.encode_text(texts))[0])
        return (image @ text.T).float()


class Retrieval(nn.Module):
    """A training step: cross entropy of the true text among itself and `num_negatives` negative texts.

    The ranking head is initialised from the ITM head of pre-training by `init_from`, as in the official code.

    Source: ViLT, section 4.2, with 15 negatives.
    """

    def __init__(self, model: FusionEncoder, dim: int, num_negatives: int = 15):
        super().__init__()
        self.model = model
        self.rank = RankingHead(dim)
        self.rank.apply(init_transformer)
        self.weights = {"retrieval": 1.0}
        self.chance_losses = {
            "retrieval": ChanceLoss(
                math.log(1 + num_negatives), "uniform over texts", "texts and image are not compared yet"
            )
        }

    @torch.no_grad()
    def init_from(self, match: ITMHead) -> None:
        """Copies the row of the ITM head that computes the logit of a match."""
        self.rank.linear.weight.copy_(match.linear.weight[1:])
        self.rank.linear.bias.copy_(match.linear.bias[1:])

    def num_terms(self, batch: Batch) -> dict[str, Tensor]:
        return sample_counts(batch, "retrieval", "retrieval/accuracy")

    def candidates(self, batch: Batch) -> Float[Tensor, "b candidates"]:
        """Each image's score with its own text, then with its negative texts."""
        image = encode_images(self.model, batch)
        true = self.score(image, self.model.encode_text(required(batch.text, "text")))
        texts = self.model.encode_text(required(batch.negative_texts, "negative texts"))
        image_index = torch.arange(len(batch), device=batch.ids.device).repeat_interleave(len(texts) // len(batch))
        negative = self.score(image.index_samples(image_index), texts)
        return torch.cat([true[:, None], negative.view(len(batch), -1)], 1)

    def score(self, image: Tokens, text: Tokens) -> Float[Tensor, " b"]:
        """The score of each image with the text of the same row."""
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

    def score_matrix(self, images: Image, texts: Text, pairs: int = 256) -> Float[Tensor, "images texts"]:
        """The score of every image with every text."""
        return score_matrix(self.model, self.rank, images, texts, pairs)


PairScorer = Callable[[Tensor], Tensor]
"""A function from pooled pairs (pairs, d) to their scores (pairs,)."""


def score_matrix(
    model: FusionEncoder, summary: PairScorer, images: Image, texts: Text, pairs: int = 256
) -> Float[Tensor, "images texts"]:
    """The score of every image with every text. Each is encoded once; `pairs` pairs are fused at a time."""
    with torch.no_grad():
        text, image = model.encode_text(texts), model.encode_image(images)
    return score_all_pairs(model, summary, image, text, pairs)


def score_all_pairs(
    model: FusionEncoder, summary: PairScorer, image: Tokens, text: Tokens, pairs: int = 256
) -> Float[Tensor, "images texts"]:
    """The score of every encoded image with every encoded text; `pairs` pairs are fused at a time."""
    index = torch.arange(len(image) * len(text), device=text.mask.device)
    scores = score_pairs(model, summary, image, text, index // len(text), index % len(text), pairs)
    return scores.view(len(image), len(text))


@torch.no_grad()
def score_pairs(
    model: FusionEncoder,
    summary: PairScorer,
    image: Tokens,
    text: Tokens,
    image_index: Int[Tensor, " k"],
    text_index: Int[Tensor, " k"],
    pairs: int = 256,
) -> Float[Tensor, " k"]:
    """The scores of pairs of images and texts, selected by index, `pairs` of them fused at a time.

    Scores are computed in fp32 even if fusion runs in bf16: rounding would make ties, which rank last.
    """
    parts = zip(image_index.split(pairs), text_index.split(pairs), strict=True)
    return torch.cat(
        [_exact(summary, model.fuse(text.index_samples(t), image.index_samples(i)).pooled) for i, t in parts]
    )


def _exact(summary: PairScorer, pooled: Tensor) -> Float[Tensor, " pairs"]:
    with torch.autocast(pooled.device.type, enabled=False):
        return summary(pooled.float())


FILL = -100.0
"""The score of a pair that is not a candidate (official codes)."""


@runtime_checkable
class DualAndFusionEncoder(DualEncoder, FusionEncoder, Protocol):
    """A model that encodes images and texts separately, and can fuse them afterwards."""


class Scores(NamedTuple):
    """Scores in both directions, FILL if a pair is not a candidate. A candidate in both has the same score."""

    image_to_text: Float[Tensor, "images texts"]
    text_to_image: Float[Tensor, "texts images"]


class RerankedRetrieval(nn.Module):
    """Two-stage retrieval: the `num_candidates` texts nearest to each image, and images to each text, scored by ITM.

    The score is the logit of a match, plus the cosine if `add_cosine` (BLIP's official code).

    Source: ALBEF, with 256 candidates on COCO and 128 on Flickr30k.
    """

    def __init__(
        self,
        model: DualAndFusionEncoder,
        contrast: ITCHead,
        match: ITMHead,
        num_candidates: int,
        add_cosine: bool = False,
    ):
        super().__init__()
        self.model, self.contrast, self.match = model, contrast, match
        self.num_candidates, self.add_cosine = num_candidates, add_cosine

    @torch.no_grad()
    def forward(self, images: Image, texts: Text, pairs: int = 256) -> Scores:
        """The scores in both directions. Images and texts are encoded once; `pairs` pairs are fused at a time."""
        text, image = self.model.encode_text(texts), self.model.encode_image(images)
        of_text = self.contrast.project_text(self.model.pooled_features(text)[0])
        cosines = (self.contrast.project_image(self.model.pooled_features(image)[0]) @ of_text.T).float()
        image_of, text_of = candidates(cosines, self.num_candidates)
        of_texts = torch.full_like(cosines, FILL)
        of_texts[image_of, text_of] = self._scores(image, text, image_of, text_of, cosines, pairs)
        text_of, image_of = candidates(cosines.T, self.num_candidates)
        of_images = torch.full_like(cosines.T, FILL)
        of_images[text_of, image_of] = self._scores(image, text, image_of, text_of, cosines, pairs)
        return Scores(of_texts, of_images)

    def _scores(
        self, image: Tokens, text: Tokens, image_index: Tensor, text_index: Tensor, cosines: Tensor, pairs: int
    ) -> Float[Tensor, " pairs"]:
        """The scores of pairs of images and texts, selected by index."""
        logits = score_pairs(
            self.model, lambda pooled: self.match(pooled)[:, 1], image, text, image_index, text_index, pairs
        )
        return logits + cosines[image_index, text_index] if self.add_cosine else logits


def candidates(
    similarities: Float[Tensor, "queries keys"], k: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Row and column indices of the `k` largest entries of each row."""
    best = similarities.topk(min(k, similarities.shape[1]), 1).indices
    return torch.arange(len(best), device=best.device).repeat_interleave(best.shape[1]), best.flatten()
