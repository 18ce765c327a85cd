from __future__ import annotations

from dataclasses import asdict, replace

from diptych.config.training import CHANGEABLE, Optimizer, Training, defaults, identity
from diptych.models.vilt import recipes as vilt


def test_usual_values_are_the_defaults_at_every_depth():
    odd = replace(Training(), steps=7, optimizer=Optimizer(learning_rate=3.0))
    assert defaults(odd) == asdict(Training())
    run = vilt.small()
    found = defaults(run)
    assert found["model"]["dim"] == 768 and asdict(run)["model"]["dim"] != 768
    assert found["training"]["steps"] == 1000 and found["objectives"]["itm"] == 0.0 and found["max_patches"] == 0


def test_what_may_change_is_no_part_of_the_identity():
    assert identity(Training()).keys() | CHANGEABLE == {"version"} | asdict(Training()).keys()
    assert identity(Training(workers=9)) == identity(Training()) != identity(Training(seed=9))
