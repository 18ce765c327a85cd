"""SCAN's weights: VSE++'s names, and the words read in both directions."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.models.scan import SCAN
from diptych.objectives.hinge import Hinge
from diptych.objectives.pretraining import Pretraining
from diptych.weights.system import Arguments, State, System, Told
from diptych.weights.vsepp import BACKWARD, infer, names


def arguments(state: State, told: Told) -> dict[str, Any]:
    """The arguments of models.scan.SCAN that stand in shapes; how it attends does not. Raises WeightsError."""
    return infer(state, told) | {"bidirectional": BACKWARD in state}


def build(arguments: Arguments, task: str, state: State) -> nn.Module:
    """The step that it was trained in, whose hinge has no weights."""
    return Pretraining(SCAN(**arguments), nn.ModuleDict(), [Hinge()])


SYSTEM = System(
    name="scan",
    known=lambda state: BACKWARD in state,
    task=lambda state: "pretraining",
    names=names,
    infer=arguments,
    build=build,
    nest="model",
)
