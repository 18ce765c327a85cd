"""Runs are written and read again, and errors of from_json name the field that does not fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from diptych.config.choices import fill
from diptych.config.objectives import (
    ITM,
    MLM,
    HardNegatives,
    MaskedRegions,
    NoImage,
    Objectives,
    RegionMasking,
    WordRegionMasking,
)
from diptych.config.run import Pretrain
from diptych.config.serialization import from_json, to_json


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"run: expected an object with fields, got \[\]"),
        ({"images": ""}, "run.images: expected an object with fields, got ''"),
        ({"model": []}, r"run.model: expected one of ViTConfig, .*, got \[\]"),
    ],
)
def test_a_value_that_is_not_an_object_is_rejected(value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        from_json(Pretrain, value)


OBJECTIVES = Objectives(
    itm=ITM(weight=2.0, negatives=HardNegatives(uniform_mix=0.1)),
    mlm=MLM(image=NoImage()),
    masked_regions=MaskedRegions(masking=WordRegionMasking(regions=RegionMasking(rate=0.3))),
)


@pytest.mark.parametrize("objectives", [Objectives(), OBJECTIVES, fill(Objectives())])
def test_absent_objectives_and_members_of_unions_are_written_and_read(objectives: Objectives):
    values = json.loads(json.dumps(to_json(objectives)))
    assert from_json(Objectives, values) == objectives
    assert {name for name, value in values.items() if value is not None} == set(objectives.present())


def test_a_member_of_a_union_is_named_and_the_only_one_is_not():
    values = to_json(OBJECTIVES)
    assert values["itc"] is None and "kind" not in values["itm"]
    assert values["itm"]["negatives"] == {"kind": "HardNegatives", "uniform_mix": 0.1, "local_only": False}
    assert values["mlm"]["image"] == {"kind": "NoImage"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"itc": {"weight": 0}}, r"objectives.itc.weight must be in \(0, 1000000.0\]: got 0"),
        ({"itc": {"margin": 1}}, "run.itc.margin: no such field"),
        ({"itc": {"kind": "ITC"}}, "run.itc.kind: no such field"),
        ({"itc": 1.0}, "run.itc: expected an object with fields, got 1.0"),
        ({"itc": False}, "run.itc: expected an object with fields, got False"),
        ({"contrast": None}, "run.contrast: no such field"),
        ({"itm": {"negatives": None}}, "run.itm.negatives: expected one of RandomNegatives, HardNegatives, got None"),
        ({"itm": {"negatives": {}}}, "run.itm.negatives: expected one of .*, got kind None"),
        ({"itm": {"negatives": {"kind": "ITC"}}}, "run.itm.negatives: expected one of .*, got kind 'ITC'"),
        (
            {"itm": {"negatives": {"kind": "RandomNegatives", "uniform_mix": 0.1}}},
            "negatives.uniform_mix: no such fiel",
        ),
        ({"mlm": {"image": {"kind": "RegionMasking", "rate": 2}}}, r"RegionMasking.rate must be in \(0, 1\]: got 2"),
    ],
)
def test_wrong_objectives_in_a_file_are_refused(value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        from_json(Objectives, value)
