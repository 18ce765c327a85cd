"""Losses that compare samples are refused before a run is written, where a micro-batch gives them nothing to compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from diptych.cli import main
from diptych.cli.arguments import overridden, recipe
from diptych.data.examples import PairExamples
from diptych.data.scenes.source import Scenes
from diptych.data.settings import ImageSettings
from diptych.data.tokenizer import Tokenizer
from diptych.jobs.building import build
from diptych.jobs.folder import RunError
from diptych.jobs.learnable import check_samples, compares
from diptych.jobs.training import opened
from diptych.objectives.draws import Hiding
from diptych.objectives.hard import HardMatching
from diptych.objectives.hiding import RegionMasking
from diptych.objectives.hinge import Hinge
from diptych.objectives.itc import ImageTextContrast
from diptych.objectives.masking import Masking
from diptych.objectives.pretraining import Pretraining
from diptych.objectives.regions import ByContrast, MaskedRegions, by_class
from diptych.step import Among
from diptych.train.settings import Training

SMALL = [
    "--model.width",
    "16",
    "--model.depth",
    "2",
    "--model.heads",
    "2",
    "--model.hidden",
    "32",
    "--model.together",
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


def test_each_objective_says_what_it_compares_a_sample_with():
    among = Among(own=1, everywhere=3, queued=5)
    hiding = Hiding(Masking(114, 4, 0.15, True), RegionMasking())
    assert ImageTextContrast().compared_samples(among) == 8
    assert Hinge().compared_samples(among) == 3
    assert HardMatching().compared_samples(among) == 3 and HardMatching(in_rank=True).compared_samples(among) == 1
    assert MaskedRegions(hiding, ByContrast()).compared_samples(among) == 3
    assert MaskedRegions(hiding, by_class).compared_samples(among) is None


def step_of(*objectives: object) -> Pretraining:
    model = overridden(recipe("vlmo.tiny"), SMALL, "pretrain").model.build()
    return Pretraining(model, nn.ModuleDict(), objectives)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "accumulate", "ranks", "queued", "refused"),
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
    batch: int, accumulate: int, ranks: int, queued: int, refused: bool
):
    training = Training(batch=batch, accumulate=accumulate)
    if not refused:
        return check_samples(step_of(ImageTextContrast()), training, ranks, queued)
    with pytest.raises(RunError, match="itc compares each sample with others, but a micro-batch has 1") as error:
        check_samples(step_of(ImageTextContrast()), training, ranks, queued)
    assert f"give --batch {2 * accumulate * ranks} or more" in str(error.value)


def test_a_queue_holds_no_candidates_for_a_hinge_nor_other_ranks_for_negatives_of_one():
    training = Training(batch=2)
    for objective in (Hinge(), HardMatching()):
        with pytest.raises(RunError, match=f"{objective.name} compares"):
            check_samples(step_of(objective), replace(training, batch=1), ranks=1, queued=99)
        check_samples(step_of(objective), training, ranks=2)
    with pytest.raises(RunError, match="itm compares"):
        check_samples(step_of(HardMatching(in_rank=True)), training, ranks=2)


def test_what_compares_nothing_takes_one_sample():
    run = overridden(recipe("vilt.tiny"), ["--model.width", "16", "--model.heads", "2"], "pretrain")
    module = build(run)
    assert not compares(module)
    check_samples(module, Training(batch=1), ranks=1)
    assert compares(build(overridden(recipe("vlmo.tiny"), SMALL, "pretrain")))


@pytest.mark.parametrize("batch", [["--batch", "1"], ["--batch", "4", "--accumulate", "4"]])
@pytest.mark.parametrize("name", ["vlmo.tiny"])
def test_the_command_line_refuses_before_anything_is_written(name: str, batch: list[str], tmp_path: Path, capsys):
    out = tmp_path / "run"
    assert main(["pretrain", name, *SMALL, *batch, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "itc compares each sample with others, but a micro-batch has 1" in line and not out.exists()


def test_a_val_split_of_one_example_is_not_scored_by_what_compares(capsys):
    one = PairExamples(Scenes("val", 1), Tokenizer(), ImageSettings(shorter=32, patch=16), 0.0)
    five = len(one)
    assert opened(lambda: one, True, fewest=five) is one and opened(lambda: one, False, fewest=five + 1) is None
    assert f"the val split has {five} examples, and losses compare at least {five + 1}" in capsys.readouterr().out
