"""Fine-tuning: options of another task are refused; epochs, best weights and frozen parts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from diptych.cli import main
from diptych.cli.arguments import apply_overrides
from diptych.config.tasks import FinetuningOptions, NoOptions, RetrievalOptions, VQAOptions
from diptych.inference.saved_model import RunError, read_config
from diptych.runs.build import freeze
from diptych.runs.finetune import finetune
from diptych.runs.recipes import finetuning_recipe, recipe, with_settings
from diptych.runs.run_folder import read_run
from diptych.runs.training_data import StreamedData, with_steps
from diptych.utils.state_dict import named_weights
from tests.runs.tiny_runs import MODEL, TRAINING, untrained


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("classification", VQAOptions(ablate="image"), "expected NoOptions for classification, got VQAOptions"),
        ("vqa", RetrievalOptions(), "expected VQAOptions for vqa, got RetrievalOptions"),
        ("retrieval", NoOptions(), "expected RetrievalOptions for retrieval, got NoOptions"),
    ],
)
def test_options_of_another_task_are_refused(task: str, options: FinetuningOptions, message: str, tmp_path: Path):
    run = replace(finetuning_recipe(task), options=options, data="nowhere")
    with pytest.raises(RunError, match=f"options: {message}"):
        finetune(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_task_is_no_setting_beside_the_command_s_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["finetune", "vqa", "--recipe", "vilt.tiny", "--data", "scenes:8", "--task", "retrieval"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "there is no --task" in capsys.readouterr().err


@pytest.mark.slow
def test_epochs_best_weights_and_frozen_parts_in_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    words = [
        *("finetune", "vqa", "--recipe", "vilt.tiny", *MODEL, *TRAINING, "--data", "scenes:16", "--out", str(out)),
        *("--steps", "1", "--epochs", "3", "--evaluate_epochs", "1", "--keep_best", "vqa", "--stop_after", "1"),
        *("--freeze", "words", "transformer.blocks.{0..0}", "--optimizer.layer_decay", "0.5"),
        *("--optimizer.learning_rate", "0.5"),  # gets worse at some validation, or ends after three
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    run, facts = read_run(out)
    assert run.training.epochs == 3
    assert run.training.steps == math.ceil(3 * facts["examples"] / run.training.batch_size)
    assert f"{run.training.steps} steps (3 epochs)" in printed
    assert "the saved weights are those of step" in printed
    assert "the saved weights are those of step" in (out / "report.html").read_text()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    validations = {row["step"]: row["val/vqa"] for row in rows if "val/vqa" in row}
    best = json.loads((out / "best.json").read_text())
    assert best["value"] == min(validations.values()) == validations[best["step"]]
    assert best["stopped_early"] == (best["last_value"] > best["value"])
    weights = load_file(out / "model.safetensors")
    first = named_weights(untrained(run, read_config(out).labels))
    frozen = [name for name in weights if name.startswith(("model.words.", "model.transformer.blocks.0."))]
    assert frozen and all(torch.equal(weights[name], first[name]) for name in frozen)
    trained = "model.transformer.norm.weight"
    assert not torch.equal(weights[trained], first[trained])
    assert main(words) == 0  # finished: only the report is made again
    assert "has already finished" in capsys.readouterr().out


def test_a_stream_of_tars_cannot_be_counted_by_epochs():
    run = recipe("vilt.tiny")
    run = replace(run, training=replace(run.training, epochs=1.0))
    with pytest.raises(RunError, match="not known of a stream of tars"):
        with_steps(run, object.__new__(StreamedData))


def test_steps_given_replace_the_epochs_of_a_recipe():
    run = with_settings(recipe("vilt.tiny"), {"epochs": 2.0})
    assert with_settings(run, {"steps": 7}).training.epochs == 0
    assert with_settings(run, {"steps": 7, "epochs": 3.0}).training.epochs == 3
    assert with_settings(run, {"batch_size": 8}).training.epochs == 2
    assert apply_overrides(run, ["--steps", "7"], "test").training.epochs == 0
    assert apply_overrides(run, ["--steps", "7", "--epochs", "3"], "test").training.epochs == 3


@pytest.mark.parametrize("metric", ["vqa/acuracy", "itm"])
def test_a_metric_that_does_not_exist_is_refused_before_the_first_step(tmp_path, capsys, metric):
    words = ["finetune", "vqa", "--recipe", "vilt.tiny", *MODEL, *TRAINING, "--data", "scenes:16"]
    assert main([*words, "--keep_best", metric, "--out", str(tmp_path / "run")]) != 0
    assert "keep_best: no validation metric is called" in capsys.readouterr().err


def test_patterns_freeze_and_a_later_one_trains_again():
    model = nn.ModuleDict({"text": nn.ModuleList(nn.Linear(2, 2) for _ in range(4)), "head": nn.Linear(2, 2)})
    freeze(model, ("*", "!head", "!text.{2..3}", "text.*.bias"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.weight", "head.bias", "text.2.weight", "text.3.weight"}
    with pytest.raises(RunError, match="no part of the ModuleDict is called"):
        freeze(model, ("txt",))
