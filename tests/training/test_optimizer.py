import itertools
import math
import subprocess
import sys
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from diptych.config.training import Optimizer, Training
from diptych.modules.position import RelativePositions
from diptych.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from diptych.training.parameter_groups import decayed, layer_depths


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


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("final", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_schedules_are_positive_continuous_and_fall_to_the_final_rate(name, final, warmup):
    n = 1000
    rates = [rate(s, n, learning_rate=2.0, schedule=name, final_rate=final, warmup=warmup) for s in range(n)]
    top = round(warmup * n)
    assert all(r > 0 for r in rates) and max(rates) == 2.0
    assert rates[-1] == pytest.approx(2.0 * final, abs=0.003)
    assert all(b <= a for a, b in itertools.pairwise(rates[top:]))
    assert max(abs(b - a) for a, b in itertools.pairwise(rates)) <= 0.0081
    middle = (top + n) // 2  # halfway down, both shapes are halfway between the peak and the final rate
    assert rates[middle] == pytest.approx(2.0 * (1 + final) / 2, abs=0.003)


def test_a_rate_per_epoch_is_that_of_the_official_cifar_training():
    """vit_train.py: ((1 + cos(pi e / E)) / 2) (1 - 0.01) + 0.01 in epoch e of E."""
    per_epoch, epochs = 7, 5
    chosen: dict[str, Any] = dict(
        learning_rate=0.002, schedule="cosine", final_rate=0.01, warmup=0.0, rate_per_epoch=True
    )
    for step in range(per_epoch * epochs):
        epoch = step // per_epoch
        expected = 0.002 * ((1 + math.cos(math.pi * epoch / epochs)) / 2 * (1 - 0.01) + 0.01)
        assert rate(step, per_epoch * epochs, epochs, **chosen) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="the number of examples is not known"):
        rate(0, 35, **chosen)


def test_drops_are_after_a_share_of_the_run():
    """ViLBERT: divided by 10 after epochs 12 and 16 of 20."""
    steps = 20 * 35
    rates = [rate(s, steps, learning_rate=4e-5, schedule="drops", drops=(0.6, 0.8), warmup=0.1) for s in range(steps)]
    assert rates[70 : 12 * 35] == pytest.approx([4e-5] * (12 * 35 - 70))
    assert rates[12 * 35 : 16 * 35] == pytest.approx([4e-6] * (4 * 35))
    assert rates[16 * 35 :] == pytest.approx([4e-7] * (4 * 35))


class Deep(nn.Module):
    """A training step on a model of two streams with its own depths, tokens, embeddings, a final norm and heads."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.words = nn.Embedding(3, 4)
        self.model.streams = nn.Module()
        self.model.streams.text = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
        self.model.image = nn.Module()
        self.model.image.cls = nn.Parameter(torch.zeros(4))
        self.model.image.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
        self.model.image.norm = nn.LayerNorm(4)
        self.heads = nn.ModuleDict({"itm": nn.Linear(4, 2)})


def test_layer_depths_count_from_the_end_of_each_stack():
    depths = layer_depths(Deep())
    assert [depths[f"model.streams.text.{i}.0.weight"] for i in range(3)] == [3, 2, 1]
    assert [depths[f"model.image.blocks.{i}.0.bias"] for i in range(2)] == [2, 1]
    assert depths["model.words.weight"] == 4 and depths["model.image.cls"] == 3
    assert {depths[f"{name}.weight"] for name in ("model.image.norm", "heads.itm")} == {0}
    with pytest.raises(ValueError, match="layer_decay counts blocks, and this model has none"):
        layer_depths(Tower())


@pytest.mark.parametrize("seed", range(20))
def test_each_trainable_parameter_is_in_one_group_with_its_rate_and_decay(seed):
    random = Random(seed)
    module = Deep()
    names = [name for name, _ in module.named_parameters()]
    for p in random.sample(list(module.parameters()), 3):
        p.requires_grad_(False)
    part = random.choice(["heads", "model.image", "image.blocks.{0..1}", "*.words"])
    factor, decay = random.choice([0.1, 10.0]), random.choice([1.0, 0.5])
    chosen = Optimizer(
        name=random.choice(["adamw", "sgd"]),
        part_rates=("heads=2", f"{part}={factor}"),
        layer_decay=decay,
        decay_all=random.random() < 0.5,
    )
    groups = build_optimizer(module, chosen).param_groups
    placed = [id(p) for group in groups for p in group["params"]]
    assert sorted(placed) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    of = {id(p): group for group in groups for p in group["params"]}
    depths = layer_depths(module)
    for name, p in zip(names, module.parameters(), strict=True):
        if p.requires_grad:
            own = name.startswith(("heads" if part == "heads" else part.split(".{")[0], f"model.{part.split('.{')[0]}"))
            own = own or (part == "*.words" and name.startswith("model.words"))
            expected = (factor if own else 2.0 if name.startswith("heads") else 1.0) * decay ** depths[name]
            assert of[id(p)]["multiplier"] == pytest.approx(expected), name
            assert (of[id(p)]["weight_decay"] > 0) == (chosen.decay_all or decayed(module)[name]), name


def test_a_pattern_that_matches_no_parameter_is_refused():
    with pytest.raises(ValueError, match="part_rates: 'haeds' matches no parameter; they begin with model, heads"):
        build_optimizer(Deep(), Optimizer(part_rates=("haeds=2",)))


def test_sgd_decays_and_accelerates_as_torch():
    ours, theirs = (nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    chosen = Optimizer(name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.05, decay_all=True)
    optimizers = (
        build_optimizer(ours, chosen),
        torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05),
    )
    for step in range(5):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model(torch.arange(6.0).view(2, 3) + step).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
