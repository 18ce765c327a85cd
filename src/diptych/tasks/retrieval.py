"""Image-text retrieval: by a dual encoder, by scoring fused pairs, or in two stages.

`ContrastRetrieval` compares separately encoded images and texts by their cosine; `Retrieval` scores fused pairs by a
ranking head; `RerankedRetrieval` fuses and scores only the candidates with the largest cosines (ALBEF, BLIP).

The metric is the recall of a gallery's images by their captions, and of captions by their image. A dual encoder scores
all pairs, and the top pairs may be re-ranked by fusion. A fusion encoder without a contrastive head fuses every pair,
which is feasible for galleries of some hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diptych.batch import Batch, Image, Text
from diptych.checkpoints.mapping import strip_prefix
from diptych.checkpoints.strict import load_strict
from diptych.config import tasks as settings
from diptych.config.run import Finetune
from diptych.data.loader import SkipCounter
from diptych.data.ranking import RankedExamples
from diptych.data.sources.captions import open_captions
from diptych.inference.embedders import image_input
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import ModelSettings, RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.metrics.recall import recall, resampled_recalls
from diptych.models.configs import ImageOnlyModel, model_name, pooled_dim
from diptych.modules.attention import Context
from diptych.modules.heads import ITCHead, ITMHead, RankingHead
from diptych.modules.init import init_transformer
from diptych.modules.tokens import Tokens
from diptych.objectives.itc import ITCLoss
from diptych.objectives.random_choices import KeyedChoices
from diptych.objectives.views import Views
from diptych.protocols import ChanceLoss, ComparisonPool, DualEncoder, FusionEncoder, image_contexts
from diptych.report import QualitativeExample, RetrievalExample
from diptych.tasks.common import (
    encode_images,
    encode_texts,
    evaluation_rows,
    evaluation_values,
    options_of,
    required,
    sample_counts,
)
from diptych.tasks.definition import (
    MAX_EXAMPLES,
    FineTuning,
    Labels,
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
    score_matrix,
)
from diptych.tasks.session import current_session, pack, unpack

FUSION_IMAGE_BATCH = 8  # images fused with every caption at once
TOP_K = 5  # retrieved images kept in predictions
BEFORE = ", before re-ranking"  # end of the names of such metrics


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

    def candidate_scores(self, batch: Batch) -> Float[Tensor, "b candidates"]:
        """Each image's score with its own text, then with its negative texts."""
        image = image_contexts(self.model, encode_images(self.model, batch))
        true = self.score(image, self.model.encode_text(required(batch.text, "text")))
        texts = self.model.encode_text(required(batch.negative_texts, "negative texts"))
        image_index = torch.arange(len(batch), device=batch.ids.device).repeat_interleave(len(texts) // len(batch))
        negative = self.score(image.index_samples(image_index), texts)
        return torch.cat([true[:, None], negative.view(len(batch), -1)], 1)

    def score(self, image: Context, text: Tokens) -> Float[Tensor, " b"]:
        """The score of each image with the text of the same row."""
        fused = self.model.fuse(text, image)  # type: ignore[arg-type]  # shared if the model takes it
        return self.rank(fused.pooled).float()

    def losses(self, scores: Tensor, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        first = scores.new_zeros(len(scores), dtype=torch.long)
        right = (scores.argmax(1) == 0).sum().float()
        return {
            "retrieval": F.cross_entropy(scores, first, reduction="sum") / counts["retrieval"],
            "retrieval/accuracy": right.detach() / counts["retrieval/accuracy"],
        }

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.losses(self.candidate_scores(batch), counts)

    def score_matrix(self, images: Image, texts: Text, pairs: int = 256) -> Float[Tensor, "images texts"]:
        """The score of every image with every text."""
        return score_matrix(self.model, self.rank, images, texts, pairs)


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
    """Recall@1, 5 and 10 in both directions, with the chance level and the gallery's size.

    A run trained with a contrastive loss is scored by similarity, and its top pairs are re-ranked if it was trained
    with ITM too; other runs fuse all pairs.

    Raises:
        DataError: the data cannot be read.
        RunError: the run was trained with no loss that scores pairs.
    """
    _ = loaded.tokenizer  # raises before images are read, if the vocabulary is unknown
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
    metrics |= recalls.named()
    by_suffix = {"": recalls}
    for k in recalls.text_to_image:
        metrics[f"image to text R@{k}, chance"] = recalls.chance_image_to_text[k]
        metrics[f"text to image R@{k}, chance"] = recalls.chance_text_to_image[k]
    if scored.before_reranking is not None:
        metrics["candidates re-ranked"] = config.rerank
        by_suffix[BEFORE] = recall(scored.before_reranking, image_of_text)
        metrics |= by_suffix[BEFORE].named(BEFORE)
    predictions, make_examples = _predictions(scored, 0 if config.shuffle_captions else MAX_EXAMPLES)
    resampled = resampled_recalls(image_of_text, by_suffix)
    return Result(metrics, predictions, make_examples, list(counter.skipped.values()), resampled=resampled)


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
    loaded: LoadedModel, config: settings.Retrieval, scorer: DualEncoderScorer, gallery: Gallery, counter: SkipCounter
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

    similarities = torch.cat(current_session().values("comparing", list(images.sizes), compute=compare, record=False))
    pair_score, num_candidates = pair_scorer(loaded), config.rerank
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

    Candidates are the `num_candidates` most similar texts of each image and images of each text.
    """
    for_image, for_text = candidate_masks(similarities, num_candidates)
    scored = for_image | for_text.T
    scores = combine(_score_candidates(loaded, pair_score, scored, images, texts), similarities)
    behind = min(FILL, scores[scored].min().item() - 1)
    return Scores(scores.masked_fill(~for_image, behind), scores.T.masked_fill(~for_text, behind))


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
    encoder = CrossEncoder(model, pair_score, list(encode_texts(loaded, gallery.texts, TEXT_BATCH)))

    def rows_of(batch: Batch) -> list[dict[str, Any]]:
        scores = encoder.score_all(encode_images(model, batch))
        return [{"image": i, "scores": pack(row)} for i, row in zip(batch.ids.tolist(), scores, strict=True)]

    examples = GalleryImages(gallery.source, loaded.image_input)
    rows = evaluation_rows(loaded, examples, config, FUSION_IMAGE_BATCH, counter, "scoring pairs", rows_of)
    image_ids = [row["image"] for row in rows]
    scores = torch.stack([unpack(row["scores"]) for row in rows])[:, gallery.text_indices(image_ids)]
    return RetrievalScores(gallery.select(image_ids), Scores(scores, scores.T))


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


def build_module(model: Any, config: ModelSettings, labels: Labels, options: settings.RetrievalOptions) -> Retrieval:
    """The training step on a model. Raises RunError if it does not fuse texts with images."""
    if not isinstance(model, FusionEncoder) or isinstance(config.model, ImageOnlyModel):
        raise RunError(f"retrieval needs a model that fuses text and image; a {model_name(config.model)} does not")
    return Retrieval(model, pooled_dim(config.model), options.negative_texts)


def training_examples(run: Finetune, split: str, labels: Labels, augment: bool) -> RankedExamples:
    """Images of a split with a caption, and captions of other images."""
    options = options_of(run, settings.RetrievalOptions)
    source = open_captions(run.data, split, run.layout, min_side=run.images.shorter_side)
    return RankedExamples(source, tokenizer_of(run), image_input(run, augment), options.negative_texts)


def init_ranking_head(module: Retrieval, weights: Mapping[str, Tensor]) -> None:
    """Initialises the ranking head from the ITM head of pre-training, if the weights have one."""
    if itm := strip_prefix(weights, "heads.itm."):
        head = ITMHead(module.rank.linear.in_features)
        load_strict(head, itm, "heads.itm")
        module.init_from(head)


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
    FineTuning(build_module, training_examples, initialize=init_ranking_head),
    predict,
    unused,
)
