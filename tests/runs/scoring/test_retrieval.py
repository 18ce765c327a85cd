"""Retrieval by contrast, and what is fused and matched again: the same scores as by reading everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from diptych.batch import Image, Regions
from diptych.config.run import Evaluation, Objectives, Pretrain
from diptych.data.images.loading import ImageSource, Random
from diptych.data.loader import SkipCounter
from diptych.models.configs import SCANConfig, VLMoConfig, VSEppConfig
from diptych.models.vlmo import recipes as vlmo
from diptych.modules.heads import ITCHead
from diptych.objectives.pretraining import Pretraining
from diptych.runs.pretrain import build
from diptych.runs.scoring.base import EvaluatedModel
from diptych.runs.scoring.gallery import Gallery, Pictures, open_gallery, readable
from diptych.runs.scoring.retrieval import Found, by_comparison, by_fusion, comparison, retrieval
from diptych.runs.tokenizer import tokenizer_of
from diptych.tasks.retrieval import FILL, Scores, score_pairs

ASKED = Evaluation(
    "retrieval",
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
    relative=False,
    scale=0.0,
    num_itc_branches=1,
    drop_path=0.0,
)


def tiny(objectives: Objectives) -> Pretrain:
    return replace(vlmo.tiny(), model=MODEL, objectives=objectives, data="scenes:50")


def subject(objectives: Objectives, asked: Evaluation = ASKED) -> EvaluatedModel:
    """A model that has learned nothing, but says different things of different pairs."""
    run = tiny(objectives)
    module = build(run).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return EvaluatedModel(run, {}, module, asked, torch.device("cpu"))


def gallery(of: EvaluatedModel) -> Gallery:
    return readable(open_gallery(of.asked, 80), SkipCounter(0.0))


@torch.no_grad()
def at_once(of: EvaluatedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and the log-odds of a match of all pairs, without batches."""
    known, module = gallery(of), of.module
    assert isinstance(module, Pretraining)
    pictures = Pictures(known.source, of.images)
    image = pictures.collate([pictures.load(i, 0, 0) for i in range(len(pictures))], range(len(pictures)), 0, 0).image
    text = of.model.encode_text(tokenizer_of(of.run).encode(known.texts))
    seen = of.model.encode_image(image)
    head = module.get_submodule("heads.contrast")
    assert isinstance(head, ITCHead)
    cosines = (
        head.project_image(of.model.pooled_features(seen)[0]) @ head.project_text(of.model.pooled_features(text)[0]).T
    )
    n, m = cosines.shape
    pair = torch.arange(n * m)
    match = module.heads["match"](of.model.fuse(text.index_samples(pair % m), seen.index_samples(pair // m)).pooled)
    return cosines, (match[:, 1] - match[:, 0]).view(n, m)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.runs.scoring.retrieval.PICTURES", 3)
    monkeypatch.setattr("diptych.runs.scoring.retrieval.FUSED_IMAGES", 3)
    monkeypatch.setattr("diptych.runs.scoring.retrieval.TEXTS", 5)


@pytest.mark.parametrize("ranked_by", ["match", "cosine", "product"])
def test_contrast_s_best_are_matched_and_the_others_stand_behind(in_parts: None, ranked_by: Any):
    of = subject(Objectives(itc=1.0, itm=1.0), replace(ASKED, rerank_by=ranked_by))
    way, (cosines, match) = comparison(of), at_once(of)
    assert way is not None and way.scale == pytest.approx(1 / 0.07, rel=0.5)
    match = match + {"match": 0.0, "cosine": 1.0, "product": way.scale}[ranked_by] * cosines
    with torch.no_grad():
        found = by_comparison(of, way, gallery(of), SkipCounter(0.0))
    assert found.before is not None
    torch.testing.assert_close(found.before, cosines, rtol=1e-5, atol=1e-6)
    for scores, alike, logits in (
        (found.scores.of_texts, cosines, match),
        (found.scores.of_images, cosines.T, match.T),
    ):
        best = torch.zeros_like(alike, dtype=torch.bool).scatter(1, alike.topk(3, 1).indices, True)
        assert (best.sum(1) == 3).all() and (scores[~best] == FILL).all()
        torch.testing.assert_close(scores[best], logits[best], rtol=1e-4, atol=1e-5)


def test_what_is_surely_no_match_still_stands_before_what_was_not_asked(in_parts: None):
    of = subject(Objectives(itc=1.0, itm=1.0), replace(ASKED, rerank_by="match"))
    module, way = of.module, comparison(of)
    assert isinstance(module, Pretraining) and way is not None
    with torch.no_grad():
        match = module.heads["match"].get_submodule("linear")
        assert isinstance(match, nn.Linear)
        match.bias.copy_(torch.tensor([500.0, -500.0]))
        scores = by_comparison(of, way, gallery(of), SkipCounter(0.0)).scores.of_texts
    asked = scores > scores.min()
    assert (asked.sum(1) == 3).all() and scores[asked].max() < FILL


def test_pairs_are_scored_in_full_precision_whatever_they_are_fused_in():
    of = subject(Objectives(itm=1.0), ASKED)
    seen: list[torch.dtype] = []

    def summary(pooled: torch.Tensor) -> torch.Tensor:
        seen.append((pooled @ pooled.T).dtype)
        return pooled[:, 0]

    text = of.model.encode_text(tokenizer_of(of.run).encode(["a red cup"]))
    image = of.model.encode_image(Image.from_full(torch.zeros(1, 3, 80, 80)))
    one = torch.zeros(1, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert score_pairs(of.model, summary, text, image, one, one).dtype == torch.float32
    assert seen == [torch.float32]


def test_all_matched_is_the_same_as_every_pair_fused(in_parts: None):
    of = subject(Objectives(itc=1.0, itm=1.0), replace(ASKED, rerank=99, rerank_by="match"))
    way = comparison(of)
    assert way is not None
    with torch.no_grad():
        again, fused = (
            by_comparison(of, way, gallery(of), SkipCounter(0.0)),
            by_fusion(of, gallery(of), SkipCounter(0.0)),
        )
    torch.testing.assert_close(again.scores.of_texts, fused.scores.of_texts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again.scores.of_images, fused.scores.of_texts.T, rtol=1e-5, atol=1e-6)
    assert fused.before is None and fused.gallery.owners == [i for i in range(7) for _ in range(2)]


@pytest.mark.parametrize(
    ("objectives", "candidates", "matched"),
    [(Objectives(itc=1.0), 3, False), (Objectives(itc=1.0, itm=1.0), 0, False), (Objectives(itc=1.0, itm=1.0), 3, True)],
)  # fmt: skip
def test_what_was_not_learned_is_not_asked(objectives: Objectives, candidates: int, matched: bool):
    of = subject(objectives, replace(ASKED, rerank=candidates))
    with torch.no_grad():
        metrics = retrieval(of).metrics
    assert ("image to text R@1, before matching" in metrics) is matched
    assert (metrics["images"], metrics["texts"], metrics["text to image R@1, chance"]) == (7, 14, pytest.approx(1 / 7))
    assert comparison(subject(Objectives(itm=1.0))) is None


class Drawn:
    """Shows regions drawn at random, the same for the same picture."""

    def load(self, source: ImageSource, index: int, random: Random | None) -> torch.Tensor:
        return torch.randn(3, 8, generator=torch.Generator().manual_seed(index))

    def stack(self, loaded: Sequence[torch.Tensor]) -> Regions:
        n = len(loaded)
        return Regions(torch.stack(list(loaded)), torch.zeros(n, 3, 5), torch.ones(n, 3, dtype=torch.bool))


@pytest.mark.parametrize("model", [SCANConfig(8, 16, 114, 8), VSEppConfig(8, 16, 114, 8)])
def test_a_similarity_of_the_model_s_own_needs_no_head(in_parts: None, monkeypatch: pytest.MonkeyPatch, model: Any):
    monkeypatch.setattr("diptych.runs.scoring.base.shown_images", lambda run: Drawn())
    run = replace(tiny(Objectives(triplet=1.0)), model=model)
    of = EvaluatedModel(run, {}, build(run).eval(), ASKED, torch.device("cpu"))
    way, known = comparison(of), gallery(of)
    assert way is not None
    with torch.no_grad():
        found = by_comparison(of, way, known, SkipCounter(0.0))
        image = of.model.encode_image(Drawn().stack([Drawn().load(known.source, i, None) for i in range(7)]))
        text = of.model.encode_text(tokenizer_of(run).encode(known.texts))
        once = of.model.similarity(text, image)
    torch.testing.assert_close(found.scores.of_texts, once, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scores.of_images, once.T, rtol=1e-4, atol=1e-5)
    assert found.before is None


def test_a_teacher_of_all_captions_scores_full_marks_and_chance_under_the_control(monkeypatch: pytest.MonkeyPatch):
    """Cosines that are 1 for a picture and its own captions: the control deals the captions, and takes that away."""
    of = subject(Objectives(itc=1.0), replace(ASKED, gallery=20, captions=1))
    true = open_gallery(of.asked, 80)
    owner = {text: i for i in range(len(true)) for text in true.captions(i)}

    def knowing(of: EvaluatedModel, way: object, known: Gallery, tally: SkipCounter):
        scores = torch.eye(20)[:, [owner[text] for text in known.texts]]
        return Found(known, Scores(scores, scores.T))

    monkeypatch.setattr("diptych.runs.scoring.retrieval.by_comparison", knowing)
    assert retrieval(of).metrics["image to text R@1"] == 1
    dealt = retrieval(replace(of, asked=replace(of.asked, shuffle_captions=True))).metrics
    assert dealt["image to text R@1"] <= 0.1 and dealt["text to image R@1"] <= 0.1
