"""Image-text retrieval: recall of a gallery's images by their captions, and of captions by their image.

A dual encoder scores all pairs by the similarity of separately encoded images and texts; the top pairs may then be
re-ranked by a fusion encoder. A fusion encoder without a contrastive head scores every pair by fusing it, which is
feasible for galleries of some hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from rich.progress import track
from torch import Tensor

from diptych.config import tasks as settings
from diptych.data.loader import SkipCounter
from diptych.metrics.recall import RecallAtK, recall
from diptych.modules.heads import ITCHead
from diptych.modules.tokens import Tokens
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import DualEncoder, FusionEncoder, SimilarityModel
from diptych.report import RetrievalExample
from diptych.runs.loaded_model import LoadedModel
from diptych.runs.qualitative_examples import QualitativeExample
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import MAX_EXAMPLES, Result, draw_examples, evenly_spaced
from diptych.runs.scoring.gallery import Gallery, load_images, open_gallery, readable_gallery
from diptych.tasks.common import encode_images
from diptych.tasks.retrieval import (
    FILL,
    ContrastRetrieval,
    CrossEncoder,
    PairScorer,
    Retrieval,
    Scores,
    candidates,
)

IMAGE_BATCH, TEXT_BATCH = 64, 512
"""Images and texts encoded at once; also the sides of the blocks in which pairs are compared and fused."""
FUSION_IMAGE_BATCH = 8  # images fused with every caption at once
SCORES = {"itc": ("itc",), "itm": ("itm",), "both": ("itc", "itm")}
"""The operations that each method of scoring needs; see `runs.operations`."""
TOP_K = 5  # retrieved images kept in predictions


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
        by: Literal["itm", "sum", "product"],
    ) -> Float[Tensor, "images texts"]:
        """The scores that pairs are ranked by: ITM log-odds, and the similarity with the weight that `by` gives it.

        - "itm": the ITM log-odds;
        - "sum": the log-odds plus the cosine (BLIP's official code);
        - "product": the product of the probabilities by ITM and by contrast, as the sum of their logarithms up to a
          constant: the log-odds plus `scale` · cosine.

        Differs: the product is in neither paper. An ITM head trained with hard negatives, which are drawn in proportion
        to the contrastive probabilities, estimates a ratio to these; by itself, after training on little data, it ranks
        worse than contrast, and the product does not.
        """
        return pair_scores + {"itm": 0.0, "sum": 1.0, "product": self.scale}[by] * similarities


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of images or of texts: its tokens, and the features that are compared."""

    tokens: Tokens
    features: Any


@dataclass(frozen=True)
class RetrievalScores:
    """The gallery of the images that could be read, its scores, and the similarities before re-ranking, if any."""

    gallery: Gallery
    scores: Scores
    before_reranking: Float[Tensor, "images texts"] | None = None


def retrieval(loaded: LoadedModel, config: settings.Retrieval) -> Result:
    """Recall@1, 5 and 10 in both directions, with the chance level and the gallery's size.

    A run trained with a contrastive loss is scored by similarity, and its top pairs are re-ranked if it was trained
    with ITM too; other runs fuse all pairs.

    Raises:
        DataError: the data cannot be read.
        RunError: the run was trained with no loss that scores pairs.
    """
    counter = SkipCounter(config.max_skipped)
    gallery = readable_gallery(open_gallery(config, loaded.image_settings.shorter_side), counter)
    scorer = dual_encoder_scorer(loaded)
    if scorer is None:
        scored = score_by_fusion(loaded, config, gallery, counter)
    else:
        scored = score_by_similarity(loaded, config, scorer, gallery, counter)
    counter.check()
    image_of_text = torch.tensor(scored.gallery.image_of_text, dtype=torch.long)
    recalls = recall(scored.scores.image_to_text, image_of_text, of_images=scored.scores.text_to_image)
    metrics: dict[str, float] = {"images": recalls.images, "texts": recalls.texts, "skipped": counter.num_skipped}
    metrics |= _named_recalls(recalls)
    for k in recalls.text_to_image:
        metrics[f"image to text R@{k}, chance"] = recalls.chance_image_to_text[k]
        metrics[f"text to image R@{k}, chance"] = recalls.chance_text_to_image[k]
    if scored.before_reranking is not None:
        metrics["candidates re-ranked"] = config.rerank
        before = _named_recalls(recall(scored.before_reranking, image_of_text))
        metrics |= {f"{name}, before re-ranking": value for name, value in before.items()}
    predictions, make_examples = _predictions(scored, 0 if config.shuffle_captions else MAX_EXAMPLES)
    return Result(metrics, predictions, make_examples, list(counter.skipped.values()))


def dual_encoder_scorer(loaded: LoadedModel) -> DualEncoderScorer | None:
    """How the run compares images and texts without fusion; None if it was trained with neither of the losses below.

    After training with a triplet loss: the model's own similarity. After a contrastive loss: the cosine of the
    contrastive head's features (of the first ITC branch, if there are several).
    """
    step, model = loaded.module, loaded.model
    weights = step.weights if isinstance(step, Pretraining) else {}
    if "triplet" in weights and isinstance(model, SimilarityModel):
        similarity = model.similarity
        return DualEncoderScorer(_identity, _identity, similarity)
    if not isinstance(model, DualEncoder) or not ("itc" in weights or isinstance(step, ContrastRetrieval)):
        return None
    head, pooled_features = step.get_submodule("heads.itc"), model.pooled_features
    assert isinstance(head, ITCHead)
    return DualEncoderScorer(
        lambda tokens: head.project_image(pooled_features(tokens)[0]),
        lambda tokens: head.project_text(pooled_features(tokens)[0]),
        _cosines,
        head.scale().item() if hasattr(head, "scale") else 1.0,
    )


def _identity(tokens: Tokens) -> Tokens:
    return tokens


def _cosines(image: Float[Tensor, "a e"], text: Float[Tensor, "b e"]) -> Float[Tensor, "a b"]:
    """Cosines of unit vectors in fp32: rounding to bf16 would make ties, which rank last."""
    with torch.autocast(image.device.type, enabled=False):
        return image.float() @ text.float().T


def score_by_similarity(
    loaded: LoadedModel, config: settings.Retrieval, scorer: DualEncoderScorer, gallery: Gallery, counter: SkipCounter
) -> RetrievalScores:
    """Scores of all readable images and texts by similarity; the top pairs are re-ranked if ITM was trained.

    The `rerank` most similar candidates of each image and of each text are scored again, by `rerank_by` (see
    `DualEncoderScorer.with_pair_scores`), and all others rank below them (ALBEF, appendix;
    `tasks.retrieval.RerankedRetrieval`).

    The tokens of both sides stay in memory: about 2 MB for an image of 577 tokens of dim 768.
    """
    images, image_ids = [], []
    for batch in load_images(loaded, gallery, IMAGE_BATCH, config.workers, counter, "encoding images"):
        tokens = encode_images(loaded.model, batch)
        images.append(EncodedBatch(tokens, scorer.image_features(tokens)))
        image_ids += batch.ids.tolist()
    gallery = gallery.select(image_ids)
    num_batches = -(-len(gallery.texts) // TEXT_BATCH)
    text_tokens = track(_encode_texts(loaded, gallery.texts), description="encoding texts", total=num_batches)
    texts = [EncodedBatch(tokens, scorer.text_features(tokens)) for tokens in text_tokens]
    rows = [
        torch.cat([scorer.similarity(image.features, text.features).float().cpu() for text in texts], 1)
        for image in track(images, description="comparing")
    ]
    similarities = torch.cat(rows)
    pair_score, num_candidates = pair_scorer(loaded), config.rerank
    if pair_score is None or not num_candidates:
        return RetrievalScores(gallery, Scores(similarities, similarities.T))
    combine = partial(scorer.with_pair_scores, by=config.rerank_by)
    scores = rerank(loaded, pair_score, similarities, images, texts, num_candidates, combine)
    return RetrievalScores(gallery, scores, similarities)


def _encode_texts(loaded: LoadedModel, texts: list[str]) -> Iterator[Tokens]:
    """The text tokens of TEXT_BATCH texts at a time."""
    tokenizer = loaded.tokenizer
    for start in range(0, len(texts), TEXT_BATCH):
        text = tokenizer.encode(texts[start : start + TEXT_BATCH]).to(loaded.device)
        yield loaded.model.encode_text(text)


def rerank(
    loaded: LoadedModel,
    pair_score: PairScorer,
    similarities: Float[Tensor, "images texts"],
    images: list[EncodedBatch],
    texts: list[EncodedBatch],
    num_candidates: int,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Scores:
    """Scores of candidates, which `combine` makes of their fused scores and similarities; other pairs rank below them.

    Candidates are the `num_candidates` most similar texts of each image and images of each text.
    """
    for_image = torch.zeros_like(similarities, dtype=torch.bool)
    for_text = torch.zeros_like(similarities.T, dtype=torch.bool)
    for_image[candidates(similarities, num_candidates)] = True
    for_text[candidates(similarities.T, num_candidates)] = True
    scored = for_image | for_text.T
    scores = combine(_score_candidates(loaded, pair_score, scored, images, texts), similarities)
    behind = min(FILL, scores[scored].min().item() - 1)
    return Scores(scores.masked_fill(~for_image, behind), scores.T.masked_fill(~for_text, behind))


def _score_candidates(
    loaded: LoadedModel,
    pair_score: PairScorer,
    scored: Bool[Tensor, "images texts"],
    images: list[EncodedBatch],
    texts: list[EncodedBatch],
) -> Float[Tensor, "images texts"]:
    """The fused score of each pair that is True in `scored`, FILL elsewhere."""
    encoder = CrossEncoder(loaded.model, pair_score, [text.tokens for text in texts])
    scores = torch.full(scored.shape, FILL)
    top = 0
    for image in track(images, description="re-ranking"):
        row, column = scored[top : top + len(image.tokens)].nonzero(as_tuple=True)
        pairs = encoder.score(image.tokens, row.to(loaded.device), column.to(loaded.device))
        scores[top + row, column] = pairs.float().cpu()
        top += len(image.tokens)
    return scores


def pair_scorer(loaded: LoadedModel) -> PairScorer | None:
    """The score of a pooled pair: a ranking head's output or the ITM log-odds; None if neither was trained."""
    step = loaded.module
    if isinstance(step, Retrieval):
        return step.rank
    if isinstance(step, Pretraining) and "itm" in step.weights and isinstance(loaded.model, FusionEncoder):
        return lambda pooled: (logits := step.heads["itm"](pooled))[:, 1] - logits[:, 0]
    return None


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
            scores["itm"] = logits if isinstance(self.loaded.module, Retrieval) else logits.sigmoid()
            if self.dual:
                scores["both"] = self.dual.with_pair_scores(logits, scores["itc"], "product")
        return {method: scores[method].float().cpu() for method in self.methods}


def score_by_fusion(
    loaded: LoadedModel, config: settings.Retrieval, gallery: Gallery, counter: SkipCounter
) -> RetrievalScores:
    """Scores of all readable images and texts, each pair fused. Images are streamed: only their scores stay in memory.

    Raises RunError if the run was trained with no loss that scores pairs.
    """
    pair_score, model = pair_scorer(loaded), loaded.model
    if pair_score is None:
        raise RunError(
            "retrieval needs a run that was trained with a contrastive, matching or ranking loss: a pre-training run "
            "with itc, triplet or itm, or a run of `diptych finetune retrieval`"
        )
    encoder, rows, image_ids = CrossEncoder(model, pair_score, list(_encode_texts(loaded, gallery.texts))), [], []
    for batch in load_images(loaded, gallery, FUSION_IMAGE_BATCH, config.workers, counter, "scoring pairs"):
        rows.append(encoder.score_all(encode_images(model, batch)).cpu())
        image_ids += batch.ids.tolist()
    scores = torch.cat(rows).float()[:, gallery.text_indices(image_ids)]
    return RetrievalScores(gallery.select(image_ids), Scores(scores, scores.T))


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


def _trained_projection(loaded: LoadedModel) -> ITCHead | None:
    """The ITC head (of the first branch, if there are several); None if it was not trained."""
    head = dict(loaded.heads.items()).get("itc")
    return head if isinstance(head, ITCHead) and loaded.losses & {"itc", "retrieval"} else None


def _named_recalls(recalls: RecallAtK) -> dict[str, float]:
    both = {"image to text": recalls.image_to_text, "text to image": recalls.text_to_image}
    return {f"{direction} R@{k}": value for direction, values in both.items() for k, value in values.items()}


def _predictions(
    scored: RetrievalScores, num_examples: int
) -> tuple[list[dict[str, object]], Callable[[], Sequence[QualitativeExample]]]:
    """For each text the TOP_K images retrieved first, and a function that makes `num_examples` examples of them."""
    gallery, scores = scored.gallery, scored.scores.text_to_image
    source, image_of_text = gallery.source, gallery.image_of_text
    best = scores.topk(min(TOP_K, scores.shape[1]), 1).indices.tolist()
    predictions = [
        {"text": text, "image": source.where(own), "retrieved": [source.where(i) for i in top]}
        for text, own, top in zip(gallery.texts, image_of_text, best, strict=True)
    ]

    def example(text: int) -> RetrievalExample:
        results = [(source.image(i), float(scores[text, i]), i == image_of_text[text]) for i in best[text]]
        return RetrievalExample(gallery.texts[text], results)

    return predictions, lambda: draw_examples(evenly_spaced(range(len(image_of_text)), num_examples), example)
