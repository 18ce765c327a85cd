"""Captioning: what is written is what is scored, in the form that COCO's own tools read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO

from diptych.config.run import Evaluation, Objectives, Pretrain
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput
from diptych.metrics.captions import caption_scores
from diptych.models.configs import CoCaConfig
from diptych.models.vilt import recipes as vilt
from diptych.modules.tokens import Tokens
from diptych.report import CaptionExample
from diptych.runs.build import build
from diptych.runs.qualitative_examples import read_shown, write_shown
from diptych.runs.run_folder import RunError
from diptych.runs.scoring.base import EvaluatedModel
from diptych.runs.scoring.captioning import captioning
from diptych.runs.scoring.gallery import open_gallery
from diptych.runs.tokenizer import tokenizer_of

ASKED = Evaluation(
    "captioning", data="scenes:50", split="train", gallery=5, max_length=9, workers=0, device="cpu", precision="fp32"
)
MODEL = CoCaConfig(
    dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=16, grid=(5, 7), num_queries=3, pool_num_heads=2, text_dim=16, text_depth=1,
    text_num_heads=2, text_mlp_dim=32, vocab_size=114, text_length=24, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32,
    embed_dim=8,
)  # fmt: skip


def subject(objectives: Objectives = Objectives(lm=1.0), asked: Evaluation = ASKED) -> EvaluatedModel:  # noqa: B008
    run: Pretrain = replace(vilt.tiny(), model=MODEL, objectives=objectives, data="scenes:50")
    return EvaluatedModel(run, {}, build(run).eval(), asked, torch.device("cpu"))


@torch.no_grad()
def test_what_is_written_is_scored_and_read_by_coco_s_tools(tmp_path: Path):
    of = subject()
    found = captioning(of)
    said = [str(row["caption"]) for row in found.predictions]
    true = open_gallery(of.asked, 80)
    assert [row["references"] for row in found.predictions] == [list(true.captions(i)) for i in range(5)]
    scores = caption_scores(said, [true.captions(i) for i in range(5)])
    assert [row["CIDEr-D"] for row in found.predictions] == scores.each
    assert found.metrics["CIDEr-D"] == scores.cider_d and found.metrics["BLEU-4"] == scores.bleu[3]
    assert (found.metrics["images"], found.metrics["ROUGE-L"]) == (5, scores.rouge_l)
    assert all(len(text.split()) < 9 for text in said)

    for name, content in found.files.items():
        (tmp_path / name).write_text(json.dumps(content))
    coco: Any = COCO(tmp_path / "captions_train_references.json")
    results = coco.loadRes(str(tmp_path / "captions_train_results.json"))
    assert [results.imgToAnns[i][0]["caption"] for i in coco.getImgIds()] == said
    assert [a["caption"] for a in coco.imgToAnns[3]] == list(true.captions(3))

    write_shown(tmp_path, found.shown())
    example = read_shown(tmp_path / "shown.json")[2]
    assert isinstance(example, CaptionExample)
    assert (example.caption, example.score, list(example.references)) == (
        said[2],
        scores.each[2],
        list(true.captions(2)),
    )


def test_a_model_that_knows_the_captions_scores_full_marks_but_not_under_the_control(monkeypatch: pytest.MonkeyPatch):
    of = subject(asked=replace(ASKED, gallery=12, max_length=24))
    true, pictures, tokenizer = open_gallery(of.asked, 80), iter(range(99)), tokenizer_of(of.run)

    def knowing(
        model: object, context: Tokens, prompt: torch.Tensor, rules: GenerationConfig, beams: BeamConfig
    ) -> GenerationOutput:
        known = tokenizer.encode([true.captions(next(pictures))[0] for _ in range(len(context))])
        return GenerationOutput(known.ids, torch.zeros(len(context)))

    monkeypatch.setattr("diptych.runs.scoring.captioning.beam_search", knowing)
    found = captioning(of)
    assert found.metrics["BLEU-4"] == pytest.approx(1) and found.metrics["CIDEr-D"] > 2 and len(found.shown()) == 12
    pictures = iter(range(99))
    dealt = captioning(replace(of, asked=replace(of.asked, shuffle_captions=True)))
    assert dealt.metrics["CIDEr-D"] < found.metrics["CIDEr-D"] / 2 and not dealt.shown()


def test_a_run_that_did_not_learn_to_write_is_refused():
    with pytest.raises(RunError, match="learned to write"):
        captioning(subject(Objectives(itc=1.0)))
