"""Settings of a run by dotted names in Python: the same runs as by the command line, and the same refusals."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.cli.arguments import apply_overrides
from diptych.config.objectives import ITC, ITM, MLM, HardNegatives, NoImage
from diptych.runs.recipes import recipe, with_settings


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, ""),
        ({"steps": 7, "optimizer.learning_rate": 1e-3}, "--steps 7 --optimizer.learning_rate 1e-3"),
        ({"objectives.mlm.rate": 0.3}, "--objectives.mlm.rate 0.3"),
        ({"objectives.itc.form": "sigmoid"}, "--objectives.itc.form sigmoid"),  # absent before
        ({"objectives.itc": "default"}, "--objectives.itc default"),
        ({"objectives.mlm": None}, "--objectives.mlm none"),
        ({"objectives.mlm": "none"}, "--objectives.mlm none"),
        ({"objectives.itm": ITM(negatives=HardNegatives())}, "--objectives.itm.negatives HardNegatives"),
        (
            {"objectives.itm.negatives.uniform_mix": 0.1, "objectives.itm.negatives": "HardNegatives"},
            "--objectives.itm.negatives HardNegatives --objectives.itm.negatives.uniform_mix 0.1",
        ),
        ({"objectives.mlm.image": NoImage()}, "--objectives.mlm.image NoImage"),
        ({"objectives.mlm": {"rate": 0.3}}, "--objectives.mlm.rate 0.3"),
        ({"objectives.itc": {"form": "sigmoid"}}, "--objectives.itc.form sigmoid"),
        ({"objectives.itc": ITC(form="sigmoid")}, "--objectives.itc.form sigmoid"),
        ({"model.dim": 16, "model.num_heads": 2}, "--model.dim 16 --model.num_heads 2"),
    ],
)
def test_settings_equal_those_of_the_command_line(values: dict[str, Any], line: str):
    by_command = apply_overrides(recipe("vilt.tiny"), line.split(), "pretrain vilt.tiny")
    assert with_settings(recipe("vilt.tiny"), values) == by_command


def test_a_whole_dataclass_adds_the_absent_one_that_it_is_within():
    run = with_settings(recipe("clip.small"), {"objectives.itm.negatives": HardNegatives(uniform_mix=0.1)})
    assert run.objectives.itm == ITM(negatives=HardNegatives(uniform_mix=0.1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objectives.mml.rate": 0.3}, r"no setting 'objectives\.mml\.rate'; did you mean .*objectives\.mlm\.rate"),
        ({"lr": 0.3}, r"no setting 'lr'; did you mean optimizer\.learning_rate"),
        ({"objectives.itc": "on"}, "expected none or default, got 'on'"),
        ({"objectives.itm.negatives.uniform_mix": 0.1}, "is a setting of HardNegatives"),
        ({"objectives.mlm.rate": 1.5}, r"rate must be in \(0, 1\]"),
        ({"objectives.mlm": {"rat": 0.3}}, r"no setting 'objectives\.mlm\.rat'; did you mean objectives\.mlm\.rate"),
        (
            {"objectives.mlm": MLM(), "objectives.mlm.rate": 0.3},
            r"objectives\.mlm\.rate is a setting of objectives\.mlm",
        ),
        ({"objectives.mlm.rate": 0.3, "objectives.mlm": MLM()}, "which is given whole: set it there"),
        (
            {"steps": 3, "training": recipe("vilt.tiny").training},
            "steps is a setting of training, which is given whole",
        ),
        (
            {"objectives.itm": None, "objectives.itm.negatives": HardNegatives()},
            "is a setting of --objectives.itm, which",
        ),
        ({"steps": 0}, r"steps must be in \[1, "),
    ],
)
def test_errors_name_the_setting(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        with_settings(recipe("vilt.tiny"), values)
