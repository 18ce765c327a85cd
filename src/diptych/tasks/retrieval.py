"""Image-text retrieval: by a dual encoder, by scoring fused pairs, or in two stages.

`ContrastRetrieval` compares separately encoded images and texts by their cosine; `Retrieval` scores fused pairs by a
ranking head; `RerankedRetrieval` fuses and scores only the candidates with the largest cosines (ALBEF, BLIP).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.modules.attention import SharedContext
from diptych.modules.heads import ITCHead, ITMHead, RankingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, CrossAttentionEncoder, DualEncoder, FusionEncoder
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
    return CrossEncoder(model, summary, [text], pairs).score_all(image)


def score_pairs(
    model: FusionEncoder,
    summary: PairScorer,
    image: Tokens,
    text: Tokens,
    image_index: Int[Tensor, " k"],
    text_index: Int[Tensor, " k"],
    pairs: int = 256,
) -> Float[Tensor, " k"]:
    """The scores of pairs of images and texts, selected by index, `pairs` of them fused at a time."""
    return CrossEncoder(model, summary, [text], pairs).score(image, image_index, text_index)


class CrossEncoder:
    """Scores of images with texts by fusion.

    If texts cross-attend to the image (`protocols.CrossAttentionEncoder`), the keys and values of an image are computed
    once for all its texts, and the part of fusion that depends on the text alone once for all images. Other models fuse
    each pair from the start.

    Scores are computed in fp32 even if fusion runs in bf16: rounding would make ties, which rank last.

    Args:
        summary: the score of a pooled pair.
        texts: batches of encoded texts; `text_index` counts through all of them.
        pairs: how many pairs are fused at a time.
    """

    @torch.no_grad()
    def __init__(self, model: FusionEncoder, summary: PairScorer, texts: Sequence[Tokens], pairs: int = 256):
        self.model, self.summary, self.pairs = model, summary, pairs
        if isinstance(model, CrossAttentionEncoder):
            texts = [model.before_image(part) for text in texts for part in _batches(text, pairs)]
        self.text = Tokens.concat_samples(*texts)

    def score_all(self, image: Tokens) -> Float[Tensor, "images texts"]:
        """The score of every image with every text."""
        num_texts = len(self.text)
        index = torch.arange(len(image) * num_texts, device=image.mask.device)
        return self.score(image, index // num_texts, index % num_texts).view(len(image), num_texts)

    @torch.no_grad()
    def score(
        self, image: Tokens, image_index: Int[Tensor, " k"], text_index: Int[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        """The scores of pairs of images and texts, selected by index."""
        if len(image_index) == 0:
            return torch.zeros(0, device=image.mask.device)
        if not isinstance(self.model, CrossAttentionEncoder):
            parts = zip(image_index.split(self.pairs), text_index.split(self.pairs), strict=True)
            fused = (self.model.fuse(self.text.index_samples(t), image.index_samples(i)) for i, t in parts)
            return torch.cat([self._summarize(pair.pooled) for pair in fused])
        order = image_index.argsort(stable=True)  # the pairs of an image next to each other
        scores = torch.cat(list(self._score_by_image(self.model, image, image_index[order], text_index[order])))
        return torch.empty_like(scores).index_copy(0, order, scores)

    def _score_by_image(
        self, model: CrossAttentionEncoder, image: Tokens, image_index: Tensor, text_index: Tensor
    ) -> Iterator[Float[Tensor, " pairs"]]:
        """The scores of pairs in ascending order of their image, a group of images at a time."""
        images, counts = image_index.unique_consecutive(return_counts=True)
        for first, past in image_groups(counts.tolist(), self.pairs):
            owner = torch.arange(past - first, device=counts.device).repeat_interleave(counts[first:past])
            context = SharedContext(image.index_samples(images[first:past]), owner)
            here, text_index = text_index.tensor_split([len(owner)])
            samples = torch.arange(len(owner), device=counts.device)
            for text, part in zip(here.split(self.pairs), samples.split(self.pairs), strict=True):
                pooled = model.pooled_pairs(self.text.index_samples(text), context.index_samples(part))
                yield self._summarize(pooled)

    def _summarize(self, pooled: Tensor) -> Float[Tensor, " pairs"]:
        with torch.autocast(pooled.device.type, enabled=False):
            return self.summary(pooled.float())


MIN_PAIRS_PER_IMAGE = 8
"""Limits the images whose keys and values are kept at once, to this fraction of the pairs fused at once."""


def image_groups(counts: Sequence[int], pairs: int) -> Iterator[tuple[int, int]]:
    """Groups of consecutive images, as the index of the first and one past the last.

    A group has at most `pairs` pairs, or is one image with more.

    Args:
        counts: the number of each image's pairs.
    """
    first = total = 0
    for i, count in enumerate(counts):
        if i > first and (total + count > pairs or i - first >= max(1, pairs // MIN_PAIRS_PER_IMAGE)):
            yield first, i
            first = i
            total = 0
        total += count
    if counts:
        yield first, len(counts)


def _batches(tokens: Tokens, size: int) -> Iterator[Tokens]:
    """The samples, `size` at a time."""
    for samples in torch.arange(len(tokens), device=tokens.mask.device).split(size):
        yield tokens.index_samples(samples)


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
        for_image = torch.zeros_like(cosines, dtype=torch.bool)
        for_text = torch.zeros_like(cosines.T, dtype=torch.bool)
        for_image[candidates(cosines, self.num_candidates)] = True
        for_text[candidates(cosines.T, self.num_candidates)] = True
        image_index, text_index = (for_image | for_text.T).nonzero(as_tuple=True)
        encoder = CrossEncoder(self.model, lambda pooled: self.match(pooled)[:, 1], [text], pairs)
        scores = torch.full_like(cosines, FILL)
        scores[image_index, text_index] = encoder.score(image, image_index, text_index)
        if self.add_cosine:
            scores = scores + cosines
        return Scores(scores.masked_fill(~for_image, FILL), scores.T.masked_fill(~for_text, FILL))


def candidates(
    similarities: Float[Tensor, "queries keys"], k: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Row and column indices of the `k` largest entries of each row."""
    best = similarities.topk(min(k, similarities.shape[1]), 1).indices
    return torch.arange(len(best), device=best.device).repeat_interleave(best.shape[1]), best.flatten()
