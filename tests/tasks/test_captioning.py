"""Captioning: the scores are those of the generated captions, and pycocotools reads the written files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO

from diptych.config.objectives import ITC, LM, Objectives
from diptych.config.run import Pretrain
from diptych.config.tasks import Captioning
from diptych.generation import BeamConfig, GenerationConfig, GenerationOutput
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import RunError
from diptych.metrics.captions import caption_scores
from diptych.models.configs import CoCaConfig
from diptych.models.vilt import recipes as vilt
from diptych.modules.tokens import Tokens
from diptych.report import CaptionExample
from diptych.runs.build import build
from diptych.runs.qualitative_examples import read_examples, write_examples
from diptych.tasks.captioning import evaluate
from diptych.tasks.gallery import open_gallery
from tests.runs.tiny_runs import loaded_from

CAPTIONS = Objectives(lm=LM())
CONFIG = Captioning(data="scenes:50", split="train", gallery=5, max_length=9, workers=0, device="cpu", precision="fp32")
MODEL = CoCaConfig(
    dim=16, depth=1, num_heads=2, mlp_dim=32, patch_size=16, grid=(5, 7), num_queries=3, pool_num_heads=2, text_dim=16, text_depth=1,
    text_num_heads=2, text_mlp_dim=32, vocab_size=114, text_length=24, decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=32,
    embed_dim=8,
)  # fmt: skip


def loaded_model(objectives: Objectives = CAPTIONS) -> LoadedModel:
    run: Pretrain = replace(vilt.tiny(), model=MODEL, objectives=objectives, data="scenes:50")
    return loaded_from(run, build(run))


@torch.no_grad()
def test_generated_captions_are_scored_and_their_files_are_read_by_pycocotools(tmp_path: Path):
    result = evaluate(loaded_model(), CONFIG)
    captions = [str(row["caption"]) for row in result.predictions]
    source = open_gallery(CONFIG, 80)
    assert [row["references"] for row in result.predictions] == [list(source.captions(i)) for i in range(5)]
    scores = caption_scores(captions, [source.captions(i) for i in range(5)])
    assert [row["CIDEr-D"] for row in result.predictions] == scores.each
    assert result.metrics["CIDEr-D"] == scores.cider_d and result.metrics["BLEU-4"] == scores.bleu[3]
    assert (result.metrics["images"], result.metrics["ROUGE-L"]) == (5, scores.rouge_l)
    assert all(len(text.split()) < 9 for text in captions)

    for name, content in result.files.items():
        (tmp_path / name).write_text(json.dumps(content))
    coco: Any = COCO(tmp_path / "captions_train_references.json")
    results = coco.loadRes(str(tmp_path / "captions_train_results.json"))
    assert [results.imgToAnns[i][0]["caption"] for i in coco.getImgIds()] == captions
    assert [a["caption"] for a in coco.imgToAnns[3]] == list(source.captions(3))

    write_examples(tmp_path, result.make_examples())
    example = read_examples(tmp_path / "examples.json")[2]
    assert isinstance(example, CaptionExample)
    assert (example.caption, example.score, list(example.references)) == (
        captions[2],
        scores.each[2],
        list(source.captions(2)),
    )


def test_true_captions_score_full_marks_and_shuffled_references_do_not(monkeypatch: pytest.MonkeyPatch):
    loaded, config = loaded_model(), replace(CONFIG, gallery=12, max_length=24)
    source, images, tokenizer = open_gallery(config, 80), iter(range(99)), loaded.tokenizer

    def true_captions(
        model: object, context: Tokens, prompt: torch.Tensor, generation: GenerationConfig, beams: BeamConfig
    ) -> GenerationOutput:
        text = tokenizer.encode([source.captions(next(images))[0] for _ in range(len(context))])
        return GenerationOutput(text.ids, torch.zeros(len(context)))

    monkeypatch.setattr("diptych.tasks.captioning.beam_search", true_captions)
    result = evaluate(loaded, config)
    assert (
        result.metrics["BLEU-4"] == pytest.approx(1)
        and result.metrics["CIDEr-D"] > 2
        and len(result.make_examples()) == 12
    )
    images = iter(range(99))
    control = evaluate(loaded, replace(config, shuffle_captions=True))
    assert control.metrics["CIDEr-D"] < result.metrics["CIDEr-D"] / 2 and not control.make_examples()


def test_captioning_a_run_without_a_captioning_loss_raises():
    with pytest.raises(RunError, match="not trained to generate captions"):
        evaluate(loaded_model(Objectives(itc=ITC())), CONFIG)
