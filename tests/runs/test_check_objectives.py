"""Losses that compare samples raise before a run is written if a micro-batch has only one sample."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from inspect import isfunction
from pathlib import Path

import pytest
from torch import nn

from diptych.cli import main
from diptych.cli.arguments import apply_overrides
from diptych.config.data import ImageSettings
from diptych.config.objectives import RegionMasking
from diptych.config.training import Training
from diptych.data.examples import PairExamples
from diptych.data.synthetic.source import Scenes
from diptych.data.tokenizers.tokenizer import Tokenizer
from diptych.inference.saved_model import RunError
from diptych.models.configs import PUBLISHED
from diptych.objectives.definition import definitions
from diptych.objectives.itc import ITCLoss
from diptych.objectives.itm import HardNegativeITMLoss
from diptych.objectives.masked_regions import ContrastTarget, MaskedRegionLoss, class_target
from diptych.objectives.masking import WordMasking
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.random_choices import PairMasking
from diptych.objectives.triplet import TripletLoss
from diptych.protocols import ComparisonPool
from diptych.runs import train as training
from diptych.runs.build import build
from diptych.runs.check_objectives import CAPABILITIES, check_samples, compares_samples
from diptych.runs.recipes import recipe
from diptych.runs.train import open_validation
from diptych.tasks.retrieval_training import Retrieval

SMALL = [
    "--model.dim",
    "16",
    "--model.depth",
    "2",
    "--model.num_heads",
    "2",
    "--model.mlp_dim",
    "32",
    "--model.vl_start_layer",
    "1",
    "--data",
    "scenes:12",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--steps",
    "1",
    "--workers",
    "0",
]


def test_each_objective_reports_how_many_samples_it_compares():
    pool = ComparisonPool(local=1, all_ranks=3, queue=5)
    masking = PairMasking(WordMasking(114, 4, 0.15, True), RegionMasking())
    assert ITCLoss().samples_compared(pool) == 8
    assert TripletLoss().samples_compared(pool) == 3
    assert (
        HardNegativeITMLoss().samples_compared(pool) == 3
        and HardNegativeITMLoss(local_negatives=True).samples_compared(pool) == 1
    )
    assert MaskedRegionLoss(masking, ContrastTarget()).samples_compared(pool) == 3
    assert MaskedRegionLoss(masking, class_target).samples_compared(pool) is None


def step_of(*objectives: object) -> Pretraining:
    model = apply_overrides(recipe("vlmo.tiny"), SMALL, "pretrain").model.build()
    return Pretraining(model, nn.ModuleDict(), objectives)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "accumulate", "ranks", "queued", "is_error"),
    [
        (1, 1, 1, 0, True),
        (4, 4, 1, 0, True),
        (2, 1, 1, 0, False),
        (4, 4, 1, 8, False),
        (2, 1, 2, 0, False),
        (2, 2, 1, 0, True),
    ],
)
def test_contrast_needs_another_sample_of_the_batch_a_rank_or_a_queue(
    batch: int, accumulate: int, ranks: int, queued: int, is_error: bool
):
    settings = Training(batch_size=batch, grad_accum=accumulate)
    if not is_error:
        return check_samples(step_of(ITCLoss()), settings, ranks, queued)
    with pytest.raises(RunError, match="itc compares each sample with others, but a micro-batch has 1") as error:
        check_samples(step_of(ITCLoss()), settings, ranks, queued)
    assert f"give --batch_size {2 * accumulate * ranks} or more" in str(error.value)


@pytest.mark.slow
def test_triplet_and_itm_do_not_compare_with_the_queue_nor_local_negatives_with_other_ranks():
    training = Training(batch_size=2)
    for objective in (TripletLoss(), HardNegativeITMLoss()):
        with pytest.raises(RunError, match=f"{objective.name} compares"):
            check_samples(step_of(objective), replace(training, batch_size=1), ranks=1, queued=99)
        check_samples(step_of(objective), training, ranks=2)
    with pytest.raises(RunError, match="itm compares"):
        check_samples(step_of(HardNegativeITMLoss(local_negatives=True)), training, ranks=2)


def test_losses_that_compare_no_samples_accept_one_sample():
    run = apply_overrides(recipe("vilt.tiny"), ["--model.dim", "16", "--model.num_heads", "2"], "pretrain")
    module = build(run)
    assert not compares_samples(module)
    check_samples(module, Training(batch_size=1), ranks=1)
    assert compares_samples(build(apply_overrides(recipe("vlmo.tiny"), SMALL, "pretrain")))


def test_retrieval_with_negative_texts_compares_no_samples():
    model = apply_overrides(recipe("vlmo.tiny"), SMALL, "pretrain").model.build()
    module = Retrieval(model, 16)
    assert not compares_samples(module)
    check_samples(module, Training(batch_size=1), ranks=1)


@pytest.mark.parametrize("batch", [["--batch_size", "1"], ["--batch_size", "4", "--grad_accum", "4"]])
@pytest.mark.parametrize("name", ["vlmo.tiny"])
def test_the_command_line_exits_before_anything_is_written(name: str, batch: list[str], tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", name, *SMALL, *batch, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "itc compares each sample with others, but a micro-batch has 1" in line and not out.exists()


@pytest.mark.parametrize("name, objectives", [("clip.small", ["itc"]), ("vilt.tiny", ["itm", "mlm", "wpa"])])
def test_a_run_without_any_objective_is_refused(name: str, objectives: list[str], tmp_path: Path, capsys):
    out = tmp_path / "run"
    removed = [word for objective in objectives for word in (f"--objectives.{objective}", "none")]
    assert main(["pretrain", name, "--data", "scenes:12", *removed, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no objective is left to train with" in line and not out.exists()


def test_a_val_split_too_small_for_losses_that_compare_is_not_used(capsys):
    one = PairExamples(Scenes("val", 1), Tokenizer(), ImageSettings(shorter_side=32, patch_size=16), 0.0)
    five = len(one)
    assert (
        open_validation(lambda: one, True, fewest=five) is one
        and open_validation(lambda: one, False, fewest=five + 1) is None
    )
    assert f"the val split has {five} examples, and losses compare at least {five + 1}" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vqa", "retrieval"])
def test_tasks_that_compare_no_samples_train_with_batch_size_1(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "VALIDATION_EXAMPLES", 4)
    small = [*SMALL[: SMALL.index("--model.vl_start_layer")], *SMALL[SMALL.index("--data") :]]
    out = ["--out", str(tmp_path / "run")]
    words = ["finetune", task, "--recipe", "vilt.tiny", *small, "--batch_size", "1", *out]
    assert main(words) == 0
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])[task] > 0


def test_errors_name_the_systems_that_have_a_capability():
    for definition in definitions().values():
        assert set(definition.needs(definition.settings()).model) <= set(CAPABILITIES)
    for protocol, (_, systems) in CAPABILITIES.items():
        methods = {
            name
            for base in protocol.__mro__
            for name, value in vars(base).items()
            if isfunction(value) and not name.startswith("_")
        }
        able = []
        for system in PUBLISHED:
            module = import_module(f"diptych.models.{system}.model")
            own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
            if any(all(hasattr(value, method) for method in methods) for value in own):
                able.append(system)
        assert not systems or systems == ", ".join(able), protocol.__name__
