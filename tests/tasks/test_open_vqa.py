"""Open-ended VQA: the decoder's initial weights, the weights of answers, generation, and a run of the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.batch import Batch, Image
from diptych.cli import main
from diptych.config.data import ImageSettings
from diptych.config.tasks import VQAOptions
from diptych.data.examples import QuestionExamples
from diptych.data.sources.answers import answer_weights
from diptych.data.sources.vqa import open_questions
from diptych.inference.saved_model import RunError
from diptych.inference.tokenizer import tokenizer_of
from diptych.metrics.vqa import normalise_answer
from diptych.models.answer_decoders import decoder_weights, with_answer_decoder
from diptych.models.blip.config import BLIPConfig
from diptych.models.vilt.config import ViLTConfig
from diptych.runs.recipes import recipe
from diptych.tasks.definition import Labels, fine_tuning
from diptych.tasks.momentum_distillation import MomentumDistilled
from diptych.tasks.open_vqa import OpenVQA
from diptych.tasks.vqa import prepare
from diptych.utils.state_dict import named_weights
from tests.tasks.test_albef_tasks import model, texts

SMALL = ["--embedders.image", "own", "--embedders.text", "own", "--images.shorter_side", "64"]
SIZES = {
    "image_dim": 32,
    "image_mlp_dim": 32,
    "dim": 32,
    "mlp_dim": 32,
}
MODEL = [*[word for name, value in SIZES.items() for word in (f"--model.{name}", str(value))], "--model.grid", "2", "2"]
BRIEF = [
    "--data",
    "scenes:16",
    "--split",
    "val",
    "--steps",
    "2",
    "--batch_size",
    "4",
    "--workers",
    "0",
    "--precision",
    "fp32",
]


def pretrained_weights(pretrained: Any) -> dict[str, torch.Tensor]:
    heads = named_weights(pretrained.pretraining_heads())
    heads = {f"heads.{name}": torch.randn_like(tensor) for name, tensor in heads.items()}
    return {f"model.{name}": tensor for name, tensor in named_weights(pretrained).items()} | heads


def test_albefs_decoder_starts_from_the_multimodal_encoder_and_the_mlm_head():
    before = pretrained_weights(model())
    weights, random = decoder_weights(model(decoder_depth=1, image_dim=12), before)
    assert torch.equal(weights["answer_words.position.weight"], before["model.words.position.weight"])
    assert torch.equal(weights["answer_head.dense.weight"], before["heads.mlm.dense.weight"])
    same = "attention.query.weight" if "decoder.0.attention.query.weight" in weights else "norm1.weight"
    assert torch.equal(weights[f"decoder.0.{same}"], before[f"model.fusion.0.0.{same}"])
    # cross-attention reads the text, not the image: keys and values of another width cannot be taken over
    assert random and all(".cross." in name for name in random)


def test_a_decoder_that_is_there_already_adds_nothing():
    step = model(decoder_depth=1)
    assert decoder_weights(step, pretrained_weights(step)) == ({}, [])


def test_blips_decoder_starts_from_the_captioner_and_what_it_shares_with_the_encoder():
    sizes: dict[str, Any] = {"image_dim": 16, "image_depth": 1, "image_num_heads": 2, "image_mlp_dim": 16}
    sizes |= {"dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "vocab_size": 32, "text_length": 8}
    config = BLIPConfig(**sizes, grid=(2, 2), patch_size=4, bos_token_id=30, enc_token_id=31)
    before = {f"model.{name}": tensor for name, tensor in named_weights(config.build()).items()}
    after = with_answer_decoder(config).build()  # type: ignore[attr-defined]
    weights, random = decoder_weights(after, before)
    assert not random and weights.keys() == {name for name in named_weights(after) if f"model.{name}" not in before}
    assert torch.equal(weights["decoder.words.word.weight"], before["model.encoder.words.word.weight"])
    assert any(".feedforward." in name for name in weights)


def test_other_models_have_no_answer_decoder():
    with pytest.raises(ValueError, match="got a ViLT"):
        with_answer_decoder(ViLTConfig())
    with pytest.raises(RunError, match="leave out --answers open"):
        prepare(replace(recipe("vilt.vqa", "Finetune"), options=VQAOptions(answers="open")))
    with pytest.raises(RunError, match="give --answers open"):
        prepare(replace(recipe("albef.vqa", "Finetune"), options=VQAOptions()))
    with pytest.raises(RunError, match="--momentum is for open answers"):
        prepare(replace(recipe("vilt.vqa", "Finetune"), options=VQAOptions(momentum=0.9)))


def test_the_papers_recipes_are_open_and_albefs_has_a_teacher():
    for name in ("albef.vqa", "blip.vqa"):
        run = recipe(name, "Finetune")
        assert run.options.answers == "open" and prepare(run).model == run.model
    run = recipe("albef.vqa", "Finetune")
    step = OpenVQA(model(decoder_depth=1))
    distilled = fine_tuning("vqa").with_teacher(step, run)
    assert isinstance(distilled, MomentumDistilled)
    epoch = run.training.steps / 8
    assert distilled.pace.alpha(0) == 0 and distilled.pace.alpha(run.training.steps) == 0.4
    assert distilled.pace.alpha(round(epoch / 2)) == pytest.approx(0.2, rel=1e-3)
    weights = zip(distilled.teacher.parameters(), step.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_each_distinct_answer_weighs_its_share_of_the_annotators():
    answers = ["Red", "red", "red.", "blue"]
    assert answer_weights(answers, normalise_answer) == {"red": 0.75, "blue": 0.25}
    run = recipe("albef.small")
    source, images = open_questions("scenes:16", "train"), ImageSettings(shorter_side=32, patch_size=32, square=True)
    examples = QuestionExamples(source, tokenizer_of(run), images, ["yes"], normalise_answer, decoded=True)
    batch = examples.collate([examples.load(i, 0, 0) for i in range(3)], range(3), 0, 0)
    assert batch.answers is not None
    assert batch.answers.question.tolist() == [0, 1, 2] and batch.answers.weights.tolist() == [1.0, 1.0, 1.0]
    decoded = [tokenizer_of(run).decode(row).strip() for row in batch.answers.text.ids.tolist()]
    assert decoded == [normalise_answer(source.question(i).answers[0]) for i in range(3)]


def test_a_generated_answer_does_not_depend_on_the_other_questions():
    tokenizer = tokenizer_of(recipe("albef.small"))
    step = OpenVQA(model(decoder_depth=1, text_length=16, vocab_size=30522)).eval()
    image = Image.from_full(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(4)))
    batch = Batch(0, 0, torch.arange(4), image=image, text=texts(4))
    together = step.generate_each(batch, tokenizer)
    for i in range(4):
        row = slice(i, i + 1)
        assert batch.text is not None
        alone = Batch(0, 0, batch.ids[row], image=image[row], text=batch.text[row])
        [(answer, probability)] = step.generate_each(alone, tokenizer)
        assert answer == together[i][0]
        assert probability == pytest.approx(together[i][1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["albef", "blip"])
def test_a_decoder_is_trained_scored_and_trained_further_by_command(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", f"{system}.small", *BRIEF, *SMALL, *MODEL, "--out", "before"]) == 0
    open_run = ["--answers", "open", "--momentum", "0.9", "--alpha_warmup", "2"]
    assert main(["finetune", "vqa", "--init_from", "before", *BRIEF, *open_run, "--out", "open"]) == 0
    assert "the answer decoder's" in capsys.readouterr().out
    (tmp_path / "list.json").write_text(json.dumps(["yes", "no", "red"]))
    scene = ["--data", "scenes:2", "--split", "train", "--workers", "0"]
    assert main(["evaluate", "open", *scene, "--candidates", "list.json"]) == 0
    metrics = json.loads(next((tmp_path / "open").glob("**/metrics.json")).read_text())["metrics"]
    assert {"accuracy", "free accuracy"} <= metrics.keys() and any(name.startswith("accuracy, ") for name in metrics)
    rows = [
        json.loads(line) for line in next((tmp_path / "open").glob("**/predictions.jsonl")).read_text().splitlines()
    ]
    assert all(row["answer"] in ("yes", "no", "red") and isinstance(row["free answer"], str) for row in rows)
    further = ["finetune", "vqa", "--init_from", "open", *BRIEF, "--out"]
    assert main([*further, "further", "--answers", "open"]) == 0
    assert main([*further, "closed"]) == 2
    assert "give --answers open" in capsys.readouterr().err


def test_labels_are_the_list_that_is_ranked():
    run = replace(recipe("albef.vqa", "Finetune"), data="scenes:16")
    labels = fine_tuning("vqa").labels(replace(run, options=replace(run.options, min_answer_count=1)))
    assert isinstance(labels, Labels) and "yes" in labels.names
