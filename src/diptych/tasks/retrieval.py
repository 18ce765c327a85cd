"""Image-text retrieval: by a dual encoder, by scoring fused pairs, or in two stages.

`ContrastRetrieval` compares separately encoded images and texts by their cosine; `Retrieval` scores fused pairs by a
ranking head; `RerankedRetrieval` fuses and scores only the candidates with the largest cosines (ALBEF, BLIP).

The metric is the recall of a gallery's images by their captions, and of captions by their image. A dual encoder scores
all pairs, and the top pairs may be re-ranked by fusion. A fusion encoder without a contrastive head fuses every pair,
which is feasible for galleries of some hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.config import tasks as settings
from diptych.data.loader import SkipCounter
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.models.configs import model_name
from diptych.modules.heads import ITCHead, ITMHead
from diptych.protocols import DualEncoder, FusionEncoder
from diptych.report import QualitativeExample, RetrievalExample
from diptych.tasks.common import encode_images, encode_texts, evaluation_rows, evaluation_values, required
from diptych.tasks.definition import (
    MAX_EXAMPLES,
    Result,
    Task,
    draw_examples,
    evenly_spaced,
    seed_without_effect,
    trained_with,
)
from diptych.tasks.gallery import Gallery, GalleryImages, open_gallery, readable_gallery
from diptych.tasks.pair_scores import (
    FILL,
    IMAGE_BATCH,
    TEXT_BATCH,
    CrossEncoder,
    DualEncoderScorer,
    EncodedBatch,
    PairScorer,
    candidate_masks,
    dual_encoder_scorer,
    pair_scorer,
)
from diptych.tasks.retrieval_metrics import Folds
from diptych.tasks.retrieval_training import FINE_TUNING
from diptych.tasks.session import current_session, pack, unpack
from diptych.utils.terminal import echo

FUSION_IMAGE_BATCH = 8  # images fused with every caption at once
TOP_K = 5  # retrieved images kept in predictions
BEFORE = ", before re-ranking"  # end of the names of such metrics


@runtime_checkable
class DualAndFusionEncoder(DualEncoder, FusionEncoder, Protocol):
    """A model that encodes images and texts separately, and can fuse them afterwards."""


class Scores(NamedTuple):
    """Scores in both directions. A candidate in both has the same score; FILL or less if a pair is not a candidate, and
    -inf in `evaluate` if image and text are of different folds.
    """

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
        for_image, for_text = candidate_masks(cosines, self.num_candidates)
        image_index, text_index = (for_image | for_text.T).nonzero(as_tuple=True)
        encoder = CrossEncoder(self.model, lambda pooled: self.match(pooled)[:, 1], [text], pairs)
        scores = torch.full_like(cosines, FILL)
        scores[image_index, text_index] = encoder.score(image, image_index, text_index)
        if self.add_cosine:
            scores = scores + cosines
        return Scores(scores.masked_fill(~for_image, FILL), scores.T.masked_fill(~for_text, FILL))


@dataclass(frozen=True)
class RetrievalScores:
    """The gallery of the images that could be read, its scores, and the similarities before re-ranking, if any."""

    gallery: Gallery
    scores: Scores
    before_reranking: Float[Tensor, "images texts"] | None = None


def evaluate(loaded: LoadedModel, config: settings.Retrieval) -> Result:
    """Recall@1, 5 and 10 in both directions and their sum, with the chance level and the gallery's size.

    With several folds, images are compared with the texts of their fold alone, and recalls are means over folds. A run
    trained with a contrastive loss is scored by similarity, and its top pairs are re-ranked if it was trained with ITM
    too; other runs fuse all pairs.

    Raises:
        DataError: the data cannot be read.
        RunError: the run was trained with no loss that scores pairs.
    """
    _ = loaded.tokenizer  # raises before images are read, if the vocabulary is unknown
    counter = SkipCounter(config.max_skipped)
    source = open_gallery(config, loaded.image_settings.shorter_side)
    folds = Folds(source, config.folds)
    gallery = readable_gallery(source, counter)
    scorer = dual_encoder_scorer(loaded)
    if scorer is None:
        scored = score_by_fusion(loaded, config, gallery, folds, counter)
    else:
        scored = score_by_similarity(loaded, config, scorer, gallery, folds, counter)
    counter.check()
    gallery, scores = scored.gallery, {"": (scored.scores.image_to_text, scored.scores.text_to_image)}
    if scored.before_reranking is not None:
        scores[BEFORE] = scored.before_reranking, scored.before_reranking.T
    recalls = folds.recalls(gallery, scores)
    metrics: dict[str, float] = {"images": len(gallery.source), "texts": len(gallery.texts)}
    metrics |= {"folds": config.folds} if config.folds > 1 else {}
    metrics |= {"skipped": counter.num_skipped, **recalls.named(), **recalls.chance()}
    if scored.before_reranking is not None:
        metrics |= {"candidates re-ranked": config.rerank, **recalls.named(BEFORE)}
    predictions, make_examples = _predictions(scored, 0 if config.shuffle_captions else MAX_EXAMPLES)
    skipped = list(counter.skipped.values())
    return Result(metrics, predictions, make_examples, skipped, resampled=recalls.resampled())


def predict(loaded: LoadedModel, batch: Batch) -> list[dict[str, Any]]:
    """The ranking score of each image with its text."""
    module: Any = loaded.module
    scores = module.score(encode_images(loaded.model, batch), loaded.model.encode_text(required(batch.text, "text")))
    return [{"score": score} for score in scores.tolist()]


class EncodedImages(NamedTuple):
    """The images of a gallery in batches: the size of each by its number, and those that this rank encoded."""

    sizes: dict[int, int]
    own: dict[int, EncodedBatch]


def _encoded_images(
    loaded: LoadedModel, config: settings.Retrieval, scorer: DualEncoderScorer, gallery: Gallery, counter: SkipCounter
) -> tuple[EncodedImages, Gallery]:
    """The readable images of a gallery, encoded, and the gallery of them."""
    own: dict[int, EncodedBatch] = {}

    def encode(number: int, batch: Batch) -> list[int]:
        tokens = encode_images(loaded.model, batch)
        own[number] = EncodedBatch(tokens, scorer.image_features(tokens))
        return batch.ids.tolist()

    examples = GalleryImages(gallery.source, loaded.image_input)
    parts = evaluation_values(loaded, examples, config, IMAGE_BATCH, counter, "encoding images", encode, record=False)
    sizes = {number: len(image_ids) for number, image_ids in parts}
    return EncodedImages(sizes, own), gallery.select([i for _, image_ids in parts for i in image_ids])


def score_by_similarity(
    loaded: LoadedModel,
    config: settings.Retrieval,
    scorer: DualEncoderScorer,
    gallery: Gallery,
    folds: Folds,
    counter: SkipCounter,
) -> RetrievalScores:
    """Scores of all readable images and texts by similarity; the top pairs are re-ranked if ITM was trained.

    The `rerank` most similar candidates of each image and of each text are scored again, by `rerank_by` (see
    `DualEncoderScorer.with_pair_scores`), and all others rank below them (ALBEF, appendix;
    `RerankedRetrieval`).

    Each rank encodes and compares its part of the images, and all texts. The tokens of both stay in memory: about 2 MB
    for an image of 577 tokens of dim 768.
    """
    images, gallery = _encoded_images(loaded, config, scorer, gallery, counter)
    texts = [
        EncodedBatch(tokens, scorer.text_features(tokens)) for tokens in encode_texts(loaded, gallery.texts, TEXT_BATCH)
    ]

    def compare(numbers: list[int]) -> Iterator[tuple[int, Tensor]]:
        for number in numbers:
            image = images.own[number].features
            yield number, torch.cat([scorer.similarity(image, text.features).float().cpu() for text in texts], 1)

    parts = current_session().values("comparing", list(images.sizes), compute=compare, record=False)
    similarities = torch.cat(parts).masked_fill(~folds.compared(gallery), -torch.inf)
    pair_score, num_candidates = pair_scorer(loaded, config.rerank_by), config.rerank
    if pair_score is None or not num_candidates:
        return RetrievalScores(gallery, Scores(similarities, similarities.T))
    combine = partial(scorer.with_pair_scores, by=config.rerank_by)
    scores = rerank(loaded, pair_score, similarities, images, texts, num_candidates, combine)
    return RetrievalScores(gallery, scores, similarities)


def rerank(
    loaded: LoadedModel,
    pair_score: PairScorer,
    similarities: Float[Tensor, "images texts"],
    images: EncodedImages,
    texts: list[EncodedBatch],
    num_candidates: int,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Scores:
    """Scores of candidates, which `combine` makes of their fused scores and similarities; other pairs rank below them.

    Candidates are the `num_candidates` most similar texts of each image and images of each text; a pair of similarity
    -inf (of different folds) is none, and keeps this score.
    """
    for_image, for_text = candidate_masks(similarities, num_candidates)
    compared = similarities != -torch.inf
    for_image, for_text = for_image & compared, for_text & compared.T
    scored = for_image | for_text.T
    echo(f"re-ranking {int(scored.sum()):,} of {scored.numel():,} pairs by fusion")
    scores = combine(_score_candidates(loaded, pair_score, scored, images, texts), similarities)
    behind = torch.where(compared, min(FILL, scores[scored].min().item() - 1), -torch.inf)
    return Scores(torch.where(for_image, scores, behind), torch.where(for_text, scores.T, behind.T))


def _score_candidates(
    loaded: LoadedModel,
    pair_score: PairScorer,
    scored: Bool[Tensor, "images texts"],
    images: EncodedImages,
    texts: list[EncodedBatch],
) -> Float[Tensor, "images texts"]:
    """The fused score of each pair that is True in `scored`, FILL elsewhere."""
    encoder = CrossEncoder(loaded.model, pair_score, [text.tokens for text in texts])
    rows = dict(zip(images.sizes, scored.split(list(images.sizes.values())), strict=True))

    def score(numbers: list[int]) -> Iterator[tuple[int, str]]:
        for number in numbers:
            row, column = (index.to(loaded.device) for index in rows[number].nonzero(as_tuple=True))
            yield number, pack(encoder.score(images.own[number].tokens, row, column))

    size = (*scored.shape, int(scored.sum()))
    parts = current_session().values("re-ranking", list(images.sizes), score, size)
    return torch.full(scored.shape, FILL).masked_scatter(scored, torch.cat([unpack(part) for part in parts]))


def score_by_fusion(
    loaded: LoadedModel, config: settings.Retrieval, gallery: Gallery, folds: Folds, counter: SkipCounter
) -> RetrievalScores:
    """Scores of all readable images and texts, each pair of a fold fused.

    Images are streamed: only their scores stay in memory.

    Raises:
        RunError: the run was trained with no loss that scores pairs.
    """
    pair_score, model = pair_scorer(loaded), loaded.model
    if pair_score is None:
        raise RunError(
            "retrieval needs a run that was trained with a contrastive, matching or ranking loss: a pre-training run "
            "with itc, triplet or itm, or a run of `diptych finetune retrieval`"
        )
    compared = folds.compared(gallery)
    echo(
        f"scoring {int(compared.sum()):,} pairs of {len(gallery.source):,} images and {len(gallery.texts):,} texts by "
        "fusion"
    )
    encoder = CrossEncoder(model, pair_score, list(encode_texts(loaded, gallery.texts, TEXT_BATCH)))

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        wanted = compared[batch.ids.cpu()]
        image_index, text_index = (index.to(loaded.device) for index in wanted.nonzero(as_tuple=True))
        pairs = encoder.score(encode_images(model, batch), image_index, text_index)
        rows = pairs.split(wanted.sum(1).tolist())
        return [{"image": i, "scores": pack(row)} for i, row in zip(batch.ids.tolist(), rows, strict=True)]

    examples = GalleryImages(gallery.source, loaded.image_input)
    rows = evaluation_rows(loaded, examples, config, FUSION_IMAGE_BATCH, counter, "scoring pairs", rows_of)
    image_ids = [row["image"] for row in rows]
    wanted, pairs = compared[image_ids], torch.cat([unpack(row["scores"]) for row in rows])
    scores = torch.full(wanted.shape, -torch.inf).masked_scatter(wanted, pairs)[:, gallery.text_indices(image_ids)]
    return RetrievalScores(gallery.select(image_ids), Scores(scores, scores.T))


def _predictions(
    scored: RetrievalScores, num_examples: int
) -> tuple[list[dict[str, object]], Callable[[], Sequence[QualitativeExample]]]:
    """For each text the TOP_K images retrieved first, and a function that makes `num_examples` examples of them."""
    gallery, scores = scored.gallery, scored.scores.text_to_image
    source, image_of_text = gallery.source, gallery.image_of_text
    values, indices = scores.topk(min(TOP_K, scores.shape[1]), 1)  # -inf: images of other folds
    best = [row[:n] for row, n in zip(indices.tolist(), values.isfinite().sum(1).tolist(), strict=True)]
    predictions = [
        {"text": text, "image": source.where(own), "retrieved": [source.where(i) for i in top]}
        for text, own, top in zip(gallery.texts, image_of_text, best, strict=True)
    ]

    def example(text: int) -> RetrievalExample:
        results = [(source.image(i), float(scores[text, i]), i == image_of_text[text]) for i in best[text]]
        return RetrievalExample(gallery.texts[text], results)

    return predictions, lambda: draw_examples(evenly_spaced(range(len(image_of_text)), num_examples), example)


def lacks(loaded: LoadedModel) -> str:
    """What a model lacks to compare images with texts."""
    if dual_encoder_scorer(loaded) or pair_scorer(loaded):
        return ""
    return f"has no trained score of pairs {trained_with(loaded)}"


def unused(loaded: LoadedModel, config: settings.Retrieval) -> dict[str, str]:
    """The seed, and settings of re-ranking, that have no effect."""
    return seed_without_effect(loaded, config) | _unused_by_reranking(loaded, config)


def _unused_by_reranking(loaded: LoadedModel, config: settings.Retrieval) -> dict[str, str]:
    """Settings of re-ranking that have no effect. `rerank` 0 is not among them where nothing could be re-ranked."""
    model = f"this {model_name(loaded.saved.model)}"
    if pair_scorer(loaded) is None:
        why = f"{model} has no trained ITM or ranking head {trained_with(loaded)}"
        return {"rerank_by": why} | ({"rerank": why} if config.rerank else {})
    if dual_encoder_scorer(loaded) is None:
        why = f"{model} was not trained with a contrastive or triplet loss, and all pairs are scored by fusion"
        return dict.fromkeys(("rerank", "rerank_by"), why)
    return {} if config.rerank else {"rerank_by": "rerank is 0"}


TASK = Task(
    settings.Retrieval,
    evaluate,
    lacks,
    FINE_TUNING,
    predict,
    unused,
)
