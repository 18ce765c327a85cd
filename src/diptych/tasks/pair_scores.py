"""Scores of image-text pairs: by the similarity of separately encoded images and texts, and by fusing every pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diptych.batch import Image, Text
from diptych.config.tasks import RerankBy
from diptych.inference.loaded_model import LoadedModel
from diptych.modules.attention import SharedContext
from diptych.modules.heads import ITCHead, RankingHead
from diptych.modules.tokens import Tokens
from diptych.protocols import CrossAttentionEncoder, DualEncoder, FusionEncoder, SimilarityModel, pooled_pair

IMAGE_BATCH, TEXT_BATCH = 64, 512
"""Images and texts encoded at once; also the sides of the blocks in which their features are compared."""
SCORES = {"itc": ("itc",), "itm": ("itm",), "both": ("itc", "itm")}
"""The operations that each method of scoring needs; see `tasks.operations`."""

FILL = -100.0
"""The score of a pair that is not a candidate (official codes)."""

PairScorer = Callable[[Tensor], Tensor]
"""A function from pooled pairs (pairs, d) to their scores (pairs,)."""


def score_matrix(
    model: FusionEncoder, pair_score: PairScorer, images: Image, texts: Text, pairs: int = 256
) -> Float[Tensor, "images texts"]:
    """The score of every image with every text. Each is encoded once; `pairs` pairs are fused at a time."""
    with torch.no_grad():
        text, image = model.encode_text(texts), model.encode_image(images)
    return CrossEncoder(model, pair_score, [text], pairs).score_all(image)


class CrossEncoder:
    """Scores of images with texts by fusion.

    If texts cross-attend to the image (`protocols.CrossAttentionEncoder`), the keys and values of an image are computed
    once for all its texts, and the part of fusion that depends on the text alone once for all images. Other models fuse
    each pair from the start.

    Scores are computed in fp32 even if fusion runs in bf16: rounding would make ties, which rank last.

    Args:
        pair_score: the score of each pooled pair.
        texts: batches of encoded texts; `text_index` counts through all of them.
        pairs: how many pairs are fused at a time.
    """

    @torch.no_grad()
    def __init__(self, model: FusionEncoder, pair_score: PairScorer, texts: Sequence[Tokens], pairs: int = 256):
        self.model, self.pair_score, self.pairs = model, pair_score, pairs
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
            pairs = ((self.text.index_samples(t), image.index_samples(i)) for i, t in parts)
            return torch.cat([self._score_pooled(pooled_pair(self.model, text, image)) for text, image in pairs])
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
                yield self._score_pooled(pooled)

    def _score_pooled(self, pooled: Tensor) -> Float[Tensor, " pairs"]:
        with torch.autocast(pooled.device.type, enabled=False):
            return self.pair_score(pooled.float())


PAIRS_PER_IMAGE = 8
"""A group has at most one image for so many pairs that are fused at once: it bounds the keys and values in memory."""


def image_groups(counts: Sequence[int], pairs: int) -> Iterator[tuple[int, int]]:
    """Groups of consecutive images whose pairs are fused together, as the index of the first and one past the last.

    A group has at most `pairs` pairs, or is one image with more.

    Args:
        counts: the number of each image's pairs.
    """
    first = total = 0
    for i, count in enumerate(counts):
        if i > first and (total + count > pairs or i - first >= max(1, pairs // PAIRS_PER_IMAGE)):
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


def candidates(
    similarities: Float[Tensor, "queries keys"], k: int
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Row and column indices of the `k` largest entries of each row."""
    best = similarities.topk(min(k, similarities.shape[1]), 1).indices
    return torch.arange(len(best), device=best.device).repeat_interleave(best.shape[1]), best.flatten()


def candidate_masks(
    similarities: Float[Tensor, "images texts"], k: int
) -> tuple[Bool[Tensor, "images texts"], Bool[Tensor, "texts images"]]:
    """The masks of each image's `k` most similar texts, and of each text's `k` most similar images."""
    for_image = torch.zeros_like(similarities, dtype=torch.bool)
    for_text = torch.zeros_like(similarities.T, dtype=torch.bool)
    for_image[candidates(similarities, k)] = True
    for_text[candidates(similarities.T, k)] = True
    return for_image, for_text


@dataclass(frozen=True)
class DualEncoderScorer:
    """How images and texts are compared without fusion: features of either side's tokens, and their similarity.

    `scale`: the inverse temperature of the contrastive head (1 if it has none). `scale` · cosine is, up to a constant,
    the log-probability of a pair among the others.
    """

    image_features: Callable[[Tokens], Any]
    text_features: Callable[[Tokens], Any]
    similarity: Callable[[Any, Any], Float[Tensor, "images texts"]]
    scale: float = 1.0

    def with_pair_scores(
        self,
        pair_scores: Float[Tensor, "images texts"],
        similarities: Float[Tensor, "images texts"],
        by: RerankBy,
    ) -> Float[Tensor, "images texts"]:
        """The scores that pairs are ranked by: `pair_scores`, and the similarity with the weight that `by` gives it.

        - "itm": the ITM log-odds, which rank as the probability of a match does (ALBEF, section 3.4);
        - "logit": the logit of a match (ALBEF's official code);
        - "sum": the logit of a match plus the cosine (BLIP's official code);
        - "product": the product of the probabilities by ITM and by contrast, as the sum of their logarithms up to a
          constant: the log-odds plus `scale` · cosine.

        Differs: the product is in neither paper. An ITM head trained with hard negatives, which are drawn in proportion
        to the contrastive probabilities, estimates a ratio to these; by itself, after training on little data, it ranks
        worse than contrast, and the product does not.
        """
        return pair_scores + {"itm": 0.0, "logit": 0.0, "sum": 1.0, "product": self.scale}[by] * similarities


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of images or of texts: its tokens, and the features that are compared."""

    tokens: Tokens
    features: Any


def dual_encoder_scorer(loaded: LoadedModel) -> DualEncoderScorer | None:
    """How the run compares images and texts without fusion; None if it was trained with neither of the losses below.

    After training with a triplet loss: the model's own similarity. After a contrastive loss: the cosine of the
    contrastive head's features (of the first ITC branch, if there are several).
    """
    model = loaded.model
    if "triplet" in loaded.losses and isinstance(model, SimilarityModel):
        return DualEncoderScorer(_identity, _identity, model.similarity)
    head = _trained_projection(loaded)
    if head is None or not isinstance(model, DualEncoder):
        return None
    pooled_features = model.pooled_features
    return DualEncoderScorer(
        lambda tokens: head.project_image(pooled_features(tokens)[0]),
        lambda tokens: head.project_text(pooled_features(tokens)[0]),
        cosines,
        _scale(head),
    )


def _identity(tokens: Tokens) -> Tokens:
    return tokens


def cosines(image: Float[Tensor, "a e"], text: Float[Tensor, "b e"]) -> Float[Tensor, "a b"]:
    """Cosines of unit vectors in fp32: rounding to bf16 would make ties, which rank last."""
    with torch.autocast(image.device.type, enabled=False):
        return image.float() @ text.float().T


def pair_scorer(loaded: LoadedModel, by: RerankBy = "itm") -> PairScorer | None:
    """The score of a pooled pair: a ranking head's output, or by ITM; None if neither was trained.

    By ITM the score is the logit of a match if `by` is "logit" or "sum", else the log-odds.
    """
    if (ranking_head := _ranking_head(loaded)) is not None:
        return ranking_head
    head = dict(loaded.heads.items()).get("itm")
    if head is None or "itm" not in loaded.losses or not isinstance(loaded.model, FusionEncoder):
        return None
    if by in ("logit", "sum"):
        return lambda pooled: head(pooled)[:, 1]
    return lambda pooled: (logits := head(pooled))[:, 1] - logits[:, 0]


def _ranking_head(loaded: LoadedModel) -> RankingHead | None:
    """The head of a model that was fine-tuned for retrieval."""
    head = getattr(loaded.module, "rank", None)
    return head if isinstance(head, RankingHead) else None


class TextScorer:
    """Scores of images with texts that are encoded once, by each of `methods` (see SCORES).

    "itc": the similarity; "itm": the probability of a match, or a ranking head's output; "both": see
    `DualEncoderScorer.with_pair_scores`, "product".

    Args:
        texts: batches of encoded texts.
    """

    def __init__(self, loaded: LoadedModel, texts: Sequence[Tokens], methods: Sequence[str]):
        operations = {operation for method in methods for operation in SCORES[method]}
        self.loaded, self.methods = loaded, methods
        self.dual = dual_encoder_scorer(loaded) if "itc" in operations else None
        self.text_features = [self.dual.text_features(text) for text in texts] if self.dual else []
        pair_score = pair_scorer(loaded) if "itm" in operations else None
        self.encoder = CrossEncoder(loaded.model, pair_score, texts) if pair_score else None

    def __call__(self, image: Tokens) -> dict[str, Float[Tensor, "images texts"]]:
        """The scores of a batch of encoded images with all texts, float32 on the CPU, by method."""
        scores = {}
        if self.dual:
            features = self.dual.image_features(image)
            scores["itc"] = torch.cat([self.dual.similarity(features, text).float() for text in self.text_features], 1)
        if self.encoder:
            logits = self.encoder.score_all(image)
            scores["itm"] = logits if _ranking_head(self.loaded) else logits.sigmoid()
            if self.dual:
                scores["both"] = self.dual.with_pair_scores(logits, scores["itc"], "product")
        return {method: scores[method].float().cpu() for method in self.methods}


def image_embedding(loaded: LoadedModel, image: Tokens) -> Float[Tensor, "b e"]:
    """Unit-norm image embeddings: projected as for ITC if trained, else the pooled features, else the mean token."""
    if not isinstance(loaded.model, DualEncoder):
        return F.normalize(image.mean().float(), dim=-1)
    pooled, head = loaded.model.pooled_features(image)[0], _trained_projection(loaded)
    return F.normalize(pooled.float(), dim=-1) if head is None else head.project_image(pooled).float()


def text_embedding(loaded: LoadedModel, text: Tokens) -> Float[Tensor, "b e"]:
    """Unit-norm text embeddings, in the space of `image_embedding`, of a dual encoder."""
    pooled, head = loaded.model.pooled_features(text)[0], _trained_projection(loaded)
    return F.normalize(pooled.float(), dim=-1) if head is None else head.project_text(pooled).float()


def contrastive_scale(loaded: LoadedModel) -> float | None:
    """The factor on cosines of `image_embedding` and `text_embedding` in ITC; None without a trained joint space."""
    head = _trained_projection(loaded)
    return None if head is None or not isinstance(loaded.model, DualEncoder) else _scale(head)


def _scale(head: ITCHead) -> float:
    """The head's inverse temperature; 1 if it has none."""
    return head.scale().item() if hasattr(head, "scale") else 1.0


def _trained_projection(loaded: LoadedModel) -> ITCHead | None:
    """The ITC head (of the first branch, if there are several); None if it was not trained."""
    head = dict(loaded.heads.items()).get("itc")
    return head if isinstance(head, ITCHead) and "itc" in loaded.losses else None
