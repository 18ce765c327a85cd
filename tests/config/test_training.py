from __future__ import annotations

from dataclasses import asdict, replace

from diptych.config.training import CHANGEABLE, Optimizer, Training, defaults, identity
from diptych.models.vilt import recipes as vilt


def test_defaults_are_collected_at_every_depth():
    changed = replace(Training(), steps=7, optimizer=Optimizer(learning_rate=3.0))
    assert defaults(changed) == asdict(Training())
    run = vilt.small()
    values = defaults(run)
    assert values["model"]["dim"] == 768 and asdict(run)["model"]["dim"] != 768
    assert values["training"]["steps"] == 1000 and values["objectives"]["itm"] is None and values["max_patches"] == 0


def test_settings_that_may_change_on_resume_are_not_part_of_the_identity():
    assert identity(Training()).keys() | CHANGEABLE == {"version"} | asdict(Training()).keys()
    assert identity(Training(workers=9)) == identity(Training()) != identity(Training(seed=9))
