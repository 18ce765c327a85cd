"""Fine-tuning refuses a run whose options are those of another task, before anything is read or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diptych.cli import main
from diptych.config.tasks import FinetuningOptions, NoOptions, RetrievalOptions, VQAOptions
from diptych.inference.saved_model import RunError
from diptych.runs.finetune import finetune
from diptych.runs.recipes import finetuning_recipe


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
