"""Retrieval scores by similarity, with re-ranking, and by fusion: equal to those of all pairs in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diptych.batch import Image, Regions
from diptych.config import tasks
from diptych.config.objectives import ITC, ITM, Objectives, Triplet
from diptych.config.run import Pretrain
from diptych.data.images.loading import ImageSource, Random
from diptych.data.loader import SkipCounter
from diptych.data.sources.base import DataError
from diptych.data.sources.subsets import CaptionSubset
from diptych.inference.loaded_model import LoadedModel
from diptych.models.configs import SCANConfig, VLMoConfig, VSEppConfig
from diptych.models.vlmo import recipes as vlmo
from diptych.modules.heads import ITCHead
from diptych.objectives.pretraining import Pretraining
from diptych.runs.pretrain import build
from diptych.tasks.gallery import Gallery, GalleryImages, open_gallery, readable_gallery
from diptych.tasks.pair_scores import FILL, CrossEncoder, dual_encoder_scorer
from diptych.tasks.retrieval import RetrievalScores, Scores, evaluate, score_by_fusion, score_by_similarity
from diptych.tasks.retrieval_metrics import RSUM, Folds
from tests.runs.tiny_runs import loaded_from

CONFIG = tasks.Retrieval(
    data="scenes:50",
    split="train",
    gallery=7,
    captions=2,
    rerank=3,
    workers=0,
    device="cpu",
    precision="fp32",
)
MODEL = VLMoConfig(
    16,
    2,
    2,
    32,
    vl_start_layer=1,
    grid=(5, 7),
    vocab_size=114,
    relative_position=False,
    layer_scale=0.0,
    num_itc_branches=1,
    drop_path=0.0,
)


def tiny(objectives: Objectives) -> Pretrain:
    return replace(vlmo.tiny(), model=MODEL, objectives=objectives, data="scenes:50")


def loaded_model(objectives: Objectives) -> LoadedModel:
    """An untrained model with perturbed weights, so that pairs have different scores."""
    run = tiny(objectives)
    module = build(run).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return loaded_from(run, module)


def whole(gallery: Gallery) -> Folds:
    return Folds(gallery.source, 1)


def gallery(config: tasks.Retrieval = CONFIG) -> Gallery:
    return readable_gallery(open_gallery(config, 80), SkipCounter(0.0))


@torch.no_grad()
def at_once(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines (images, texts) and ITM logits (images, texts, 2) of all pairs in one batch."""
    pairs, module = gallery(), loaded.module
    assert isinstance(module, Pretraining)
    examples = GalleryImages(pairs.source, loaded.image_settings)
    n = len(examples)
    pixels = examples.collate([examples.load(i, 0, 0) for i in range(n)], range(n), 0, 0).image
    text = loaded.model.encode_text(loaded.tokenizer.encode(pairs.texts))
    image = loaded.model.encode_image(pixels)
    head = module.get_submodule("heads.itc")
    assert isinstance(head, ITCHead)
    (image_features,), (text_features,) = loaded.model.pooled_features(image), loaded.model.pooled_features(text)
    cosines = head.project_image(image_features) @ head.project_text(text_features).T
    m = cosines.shape[1]
    pair = torch.arange(n * m)
    match = module.heads["itm"](loaded.model.fuse(text.index_samples(pair % m), image.index_samples(pair // m)).pooled)
    return cosines, match.view(n, m, 2)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.tasks.retrieval.IMAGE_BATCH", 3)
    monkeypatch.setattr("diptych.tasks.retrieval.FUSION_IMAGE_BATCH", 3)
    monkeypatch.setattr("diptych.tasks.retrieval.TEXT_BATCH", 5)


@pytest.mark.parametrize("ranked_by", ["itm", "logit", "sum", "product"])
def test_the_most_similar_pairs_are_reranked_and_the_others_rank_below(in_parts: None, ranked_by: Any):
    loaded, config = loaded_model(Objectives(itc=ITC(), itm=ITM())), replace(CONFIG, rerank_by=ranked_by)
    scorer, (cosines, logits) = dual_encoder_scorer(loaded), at_once(loaded)
    assert scorer is not None and scorer.scale == pytest.approx(1 / 0.07, rel=0.5)
    match = logits[..., 1] - (logits[..., 0] if ranked_by in ("itm", "product") else 0)
    match = match + {"itm": 0.0, "logit": 0.0, "sum": 1.0, "product": scorer.scale}[ranked_by] * cosines
    with torch.no_grad():
        scored = score_by_similarity(loaded, config, scorer, gallery(), whole(gallery()), SkipCounter(0.0))
    assert scored.before_reranking is not None
    torch.testing.assert_close(scored.before_reranking, cosines, rtol=1e-5, atol=1e-6)
    for scores, similarities, logits in (
        (scored.scores.image_to_text, cosines, match),
        (scored.scores.text_to_image, cosines.T, match.T),
    ):
        best = torch.zeros_like(similarities, dtype=torch.bool).scatter(1, similarities.topk(3, 1).indices, True)
        assert (best.sum(1) == 3).all() and (scores[~best] == FILL).all()
        torch.testing.assert_close(scores[best], logits[best], rtol=1e-4, atol=1e-5)


def test_a_reranked_candidate_of_lowest_log_odds_still_ranks_before_other_pairs(in_parts: None):
    loaded, config = loaded_model(Objectives(itc=ITC(), itm=ITM())), replace(CONFIG, rerank_by="itm")
    module, scorer = loaded.module, dual_encoder_scorer(loaded)
    assert isinstance(module, Pretraining) and scorer is not None
    with torch.no_grad():
        match = module.heads["itm"].get_submodule("linear")
        assert isinstance(match, nn.Linear)
        match.bias.copy_(torch.tensor([500.0, -500.0]))
        scores = score_by_similarity(
            loaded, config, scorer, gallery(), whole(gallery()), SkipCounter(0.0)
        ).scores.image_to_text
    reranked = scores > scores.min()
    assert (reranked.sum(1) == 3).all() and scores[reranked].max() < FILL


def test_pairs_fused_in_bf16_are_scored_in_fp32():
    loaded = loaded_model(Objectives(itm=ITM()))
    dtypes: list[torch.dtype] = []

    def first_feature(pooled: torch.Tensor) -> torch.Tensor:
        dtypes.append((pooled @ pooled.T).dtype)
        return pooled[:, 0]

    text = loaded.model.encode_text(loaded.tokenizer.encode(["a red cup"]))
    image = loaded.model.encode_image(Image.from_full(torch.zeros(1, 3, 80, 80)))
    one = torch.zeros(1, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert CrossEncoder(loaded.model, first_feature, [text]).score(image, one, one).dtype == torch.float32
    assert dtypes == [torch.float32]


def test_reranking_all_pairs_equals_fusing_all_pairs(in_parts: None):
    loaded, config = loaded_model(Objectives(itc=ITC(), itm=ITM())), replace(CONFIG, rerank=99, rerank_by="itm")
    scorer = dual_encoder_scorer(loaded)
    assert scorer is not None
    with torch.no_grad():
        reranked = score_by_similarity(loaded, config, scorer, gallery(), whole(gallery()), SkipCounter(0.0))
        fused = score_by_fusion(loaded, config, gallery(), whole(gallery()), SkipCounter(0.0))
    torch.testing.assert_close(reranked.scores.image_to_text, fused.scores.image_to_text, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(reranked.scores.text_to_image, fused.scores.image_to_text.T, rtol=1e-5, atol=1e-6)
    assert fused.before_reranking is None and fused.gallery.image_of_text == [i for i in range(7) for _ in range(2)]


@pytest.mark.parametrize(
    ("objectives", "candidates", "is_reranked"),
    [(Objectives(itc=ITC()), 3, False), (Objectives(itc=ITC(), itm=ITM()), 0, False), (Objectives(itc=ITC(), itm=ITM()), 3, True)],
)  # fmt: skip
def test_reranking_requires_a_run_trained_with_itm(objectives: Objectives, candidates: int, is_reranked: bool):
    with torch.no_grad():
        metrics = evaluate(loaded_model(objectives), replace(CONFIG, rerank=candidates)).metrics
    assert ("image to text R@1, before re-ranking" in metrics) is is_reranked
    assert (metrics["images"], metrics["texts"], metrics["text to image R@1, chance"]) == (7, 14, pytest.approx(1 / 7))
    assert dual_encoder_scorer(loaded_model(Objectives(itm=ITM()))) is None


class RandomRegions:
    """An image loader of random regions, the same for the same image."""

    def load(self, source: ImageSource, index: int, random: Random | None) -> torch.Tensor:
        return torch.randn(3, 8, generator=torch.Generator().manual_seed(index))

    def stack(self, loaded: Sequence[torch.Tensor]) -> Regions:
        n = len(loaded)
        return Regions(torch.stack(list(loaded)), torch.zeros(n, 3, 5), torch.ones(n, 3, dtype=torch.bool))


@pytest.mark.parametrize("model", [SCANConfig(8, 16, 114, 8), VSEppConfig(8, 16, 114, 8)])
def test_a_model_with_its_own_similarity_needs_no_contrastive_head(
    in_parts: None, monkeypatch: pytest.MonkeyPatch, model: Any
):
    monkeypatch.setattr("diptych.inference.loaded_model.image_input", lambda run: RandomRegions())
    run = replace(tiny(Objectives(triplet=Triplet())), model=model)
    loaded = loaded_from(run, build(run))
    scorer, pairs = dual_encoder_scorer(loaded), gallery()
    assert scorer is not None
    with torch.no_grad():
        scored = score_by_similarity(loaded, CONFIG, scorer, pairs, whole(pairs), SkipCounter(0.0))
        regions = RandomRegions().stack([RandomRegions().load(pairs.source, i, None) for i in range(7)])
        image = loaded.model.encode_image(regions)
        text = loaded.model.encode_text(loaded.tokenizer.encode(pairs.texts))
        expected = loaded.model.similarity(image, text)
    torch.testing.assert_close(scored.scores.image_to_text, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scored.scores.text_to_image, expected.T, rtol=1e-4, atol=1e-5)
    assert scored.before_reranking is None


def test_true_similarities_score_full_marks_and_chance_with_shuffled_captions(monkeypatch: pytest.MonkeyPatch):
    """Cosines are 1 for an image and its own captions; the control shuffles the captions between images."""
    loaded, config = loaded_model(Objectives(itc=ITC())), replace(CONFIG, gallery=20, captions=1)
    source = open_gallery(config, 80)
    image_of_text = {text: i for i in range(len(source)) for text in source.captions(i)}

    def true_scores(
        loaded: LoadedModel,
        config: tasks.Retrieval,
        scorer: object,
        gallery: Gallery,
        folds: Folds,
        counter: SkipCounter,
    ):
        scores = torch.eye(20)[:, [image_of_text[text] for text in gallery.texts]]
        return RetrievalScores(gallery, Scores(scores, scores.T))

    monkeypatch.setattr("diptych.tasks.retrieval.score_by_similarity", true_scores)
    assert evaluate(loaded, config).metrics["image to text R@1"] == 1
    control = evaluate(loaded, replace(config, shuffle_captions=True)).metrics
    assert control["image to text R@1"] <= 0.1 and control["text to image R@1"] <= 0.1


def test_recall_of_each_direction_is_of_its_own_scores(monkeypatch: pytest.MonkeyPatch):
    """After re-ranking, a pair may be a candidate of its image and not of its text: the directions differ."""
    loaded, config = loaded_model(Objectives(itc=ITC(), itm=ITM())), replace(CONFIG, gallery=20, captions=1)
    n = 20
    right, wrong = torch.eye(n), torch.eye(n).roll(1, 0)

    def asymmetric(scores: Scores) -> dict[str, float]:
        monkeypatch.setattr(
            "diptych.tasks.retrieval.score_by_similarity",
            lambda loaded, config, scorer, gallery, folds, counter: RetrievalScores(gallery, scores, right),
        )
        return evaluate(loaded, config).metrics

    for scores, to_text, to_image in ((Scores(right, wrong.T), 1.0, 0.0), (Scores(wrong, right.T), 0.0, 1.0)):
        metrics = asymmetric(scores)
        assert (metrics["image to text R@1"], metrics["text to image R@1"]) == (to_text, to_image)
        before = [metrics[f"{way} R@1, before re-ranking"] for way in ("image to text", "text to image")]
        assert before == [1.0, 1.0]


DIRECTIONS = ("image to text", "text to image")


@pytest.mark.parametrize("rerank", [0, 2])
@pytest.mark.parametrize("objectives", [Objectives(itm=ITM()), Objectives(itc=ITC(), itm=ITM())], ids=["itm", "itc"])
def test_recalls_in_folds_are_the_means_of_evaluating_each_fold(
    in_parts: None, monkeypatch: pytest.MonkeyPatch, objectives: Objectives, rerank: int
):
    loaded, config = loaded_model(objectives), replace(CONFIG, gallery=12, rerank=rerank)
    whole_source = open_gallery(config, 80)
    with torch.no_grad():
        in_folds = evaluate(loaded, replace(config, folds=3))
        alone = []
        for first in range(0, 12, 4):
            part = CaptionSubset(whole_source, range(first, first + 4))
            monkeypatch.setattr("diptych.tasks.retrieval.open_gallery", lambda *_, part=part: part)
            alone.append(evaluate(loaded, config))
    names = [f"{way} R@{k}{end}" for way in DIRECTIONS for k in (1, 5, 10) for end in ("", ", chance")]
    for name in [*names, RSUM]:
        expected = sum(result.metrics[name] for result in alone) / 3
        assert in_folds.metrics[name] == pytest.approx(expected), name
    assert (in_folds.metrics["images"], in_folds.metrics["texts"], in_folds.metrics["folds"]) == (12, 24, 3)
    first = [{**row, "retrieved": row["retrieved"][: rerank or None]} for r in alone for row in r.predictions]
    assert [{**row, "retrieved": row["retrieved"][: rerank or None]} for row in in_folds.predictions] == first


def test_an_unreadable_image_moves_no_other_to_another_fold():
    pairs = gallery(replace(CONFIG, gallery=6))
    folds = Folds(pairs.source, 3)
    assert folds.of_images(pairs).tolist() == [0, 0, 1, 1, 2, 2]
    readable = pairs.select([0, 2, 3, 5]).select([1, 2, 3])
    assert folds.of_images(readable).tolist() == [1, 1, 2] and folds.of_texts(readable).tolist() == [1, 1, 1, 1, 2, 2]
    scores = torch.tensor([[1.0, 0.0, 3.0], [2.0, 1.0, 3.0], [0.0, 0.0, 1.0]]).repeat_interleave(2, 1)
    recalls = folds.recalls(readable, {"": (scores, scores.T)})
    assert [(len(fold.images), fold.recalls[""].image_to_text[1]) for fold in recalls.folds] == [(2, 0.5), (1, 1.0)]
    assert recalls.named()["image to text R@1"] == 0.75


def test_recalls_of_folds_with_each_photograph_drawn_once_are_those_measured():
    """Folds have different numbers of texts, so that a mean over folds is none over texts."""
    pairs = gallery(replace(CONFIG, gallery=6))
    owner = [0, 0, 0, 1, 2, 3, 4, 5]
    pairs = replace(pairs, texts=["a text"] * 8, image_of_text=owner)
    scores = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    recalls = Folds(pairs.source, 3).recalls(pairs, {"": (scores, scores.T), ", before": (-scores, -scores.T)})
    measured = {**recalls.named(), **recalls.named(", before")}
    drawn = recalls.resampled()
    once = drawn.metrics(np.ones((1, 6), dtype=np.int64))
    assert drawn.photographs == 6
    assert {name: value.item() for name, value in once.items()} == pytest.approx(measured)
    twice = drawn.metrics(np.array([[2, 0, 1, 1, 1, 1]]))
    first = recalls.folds[0].recalls[""].text_ranks[0] < 1
    others = [fold.recalls[""].image_to_text[1] for fold in recalls.folds[1:]]
    assert twice["image to text R@1"].item() == pytest.approx((float(first) + sum(others)) / 3)


def test_folds_that_do_not_divide_the_gallery_raise():
    with pytest.raises(DataError, match=r"scenes.*: 7 images cannot be divided into 5 folds .*; use --gallery 5"):
        evaluate(loaded_model(Objectives(itm=ITM())), replace(CONFIG, folds=5))
    with pytest.raises(DataError, match="use --folds 7 or less"):
        evaluate(loaded_model(Objectives(itm=ITM())), replace(CONFIG, folds=8))


def test_rsum_is_the_sum_of_the_six_recalls_in_percent():
    with torch.no_grad():
        metrics = evaluate(loaded_model(Objectives(itc=ITC())), CONFIG).metrics
    recalls = [metrics[f"{way} R@{k}"] for way in DIRECTIONS for k in (1, 5, 10)]
    assert metrics[RSUM] == pytest.approx(100 * sum(recalls)) and 0 < metrics[RSUM] <= 600


def test_the_number_of_pairs_is_printed_before_they_are_fused(capsys: pytest.CaptureFixture[str]):
    with torch.no_grad():
        evaluate(loaded_model(Objectives(itm=ITM())), CONFIG)
        assert "scoring 98 pairs of 7 images and 14 texts by fusion" in capsys.readouterr().out
        evaluate(loaded_model(Objectives(itm=ITM())), replace(CONFIG, gallery=6, folds=3))
        assert "scoring 24 pairs of 6 images and 12 texts by fusion" in capsys.readouterr().out
        evaluate(loaded_model(Objectives(itc=ITC(), itm=ITM())), replace(CONFIG, rerank=99))
        assert "re-ranking 98 of 98 pairs by fusion" in capsys.readouterr().out
