import subprocess
import sys

import pytest
import torch
from torch import nn

from diptych.config.training import Optimizer, Training
from diptych.modules.position import RelativePositions
from diptych.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from diptych.training.parameter_groups import decayed


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.body, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.heads = nn.ModuleDict({"itm": nn.Linear(4, 2)})


def test_biases_norms_and_scalars_are_not_decayed_and_tokens_are():
    rule = decayed(Tower())
    assert {name for name, decay in rule.items() if decay} == {"cls", "body.weight", "heads.itm.weight"}


def test_relative_positions_count_as_biases():
    assert decayed(RelativePositions(1, 2, (2, 2), 4)) == {"table": False}


def rate(step: int, steps: int, epochs: float = 0.0, **optimizer) -> float:
    return learning_rate(step, Training(steps=steps, epochs=epochs, optimizer=Optimizer(**optimizer)))


def test_part_rates_multiply_the_learning_rate():
    module = Tower()
    optimizer = build_optimizer(module, Optimizer(part_rates=("heads=10",)))
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(module.heads["itm"].bias)] == 5.0 and rates[id(module.cls)] == 0.5
    assert len(rates) == len(list(module.parameters()))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_rises_to_the_peak_then_the_schedule_falls(schedule):
    rates = [rate(s, 100, learning_rate=2.0, schedule=schedule) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 if schedule == "constant" else 1.0)  # half-way down, for both shapes
    assert 0 < rates[-1] <= (2.0 if schedule == "constant" else 0.03)


def test_warmup_is_steps_or_a_share():
    assert rate(4, 1000, learning_rate=1.0, warmup=5.0) == 1.0
    assert rate(3, 1000, learning_rate=1.0, warmup=5.0) == pytest.approx(0.8)


@pytest.mark.slow
def test_settings_need_no_torch_and_check_their_ranges():
    code = "import sys, diptych.config.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(ValueError, match=r"steps must be in \[1, "):
        Training(steps=0)
