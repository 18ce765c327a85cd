"""Training steps and generated tokens cost no more than recorded: no lost cache, no padded path, no needless copy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from diptych import cli
from diptych.inference.loaded_model import LoadedModel
from diptych.inference.saved_model import SavedModel
from diptych.modules.attention import CrossAttention, SharedContext
from diptych.modules.tokens import Tokens, packing
from diptych.objectives.pretraining import Pretraining
from tests.generation.counting import flops
from tests.generation.test_shared_keys import CONFIGS
from tests.models.systems.common import batch_of
from tests.models.test_battery import SYSTEMS, losses_of, small
from tests.objectives.test_shared_work import distilled
from tests.regression.costs import RECORDED, Costs, step_cases, step_costs, token_costs

COSTS = json.loads(RECORDED.read_text())
SLACK = {"flops": 1.0, "operators": 1.02, "bytes_copied": 1.02}  # of the recorded count

pytestmark = pytest.mark.skipif(
    torch.__version__.split("+")[0] != COSTS["torch"].split("+")[0], reason=f"recorded with torch {COSTS['torch']}"
)


def assert_not_more(got: Costs, recorded: Costs) -> None:
    """A lower count is progress: it is recorded anew by `python -m tests.regression.costs --write`."""
    more = {key: (value, recorded[key]) for key, value in got.items() if value > SLACK[key] * recorded[key]}
    assert not more, f"costs (now, recorded): {more}"


@pytest.mark.slow
@pytest.mark.parametrize("name", step_cases())
def test_a_training_step_costs_no_more_than_recorded(name: str):
    assert_not_more(step_costs(name), COSTS["steps"][name])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_generated_token_costs_no_more_than_recorded(name: str):
    assert_not_more(token_costs(name), COSTS["tokens"][name])


def test_a_lost_cache_is_noticed(monkeypatch: pytest.MonkeyPatch):
    anew = lambda self, attention, projection: projection(self._apply_views(self.tokens))  # noqa: E731
    monkeypatch.setattr(SharedContext, "project", anew)
    with pytest.raises(AssertionError, match="flops"):
        assert_not_more(token_costs("blip captions"), COSTS["tokens"]["blip captions"])


def test_a_padded_path_is_noticed(monkeypatch: pytest.MonkeyPatch):
    name = next(name for name in step_cases() if name.startswith("vilt") and name.endswith("fp32"))
    forward = Pretraining.forward

    def padded(self, *inputs):
        self.pack = False
        return forward(self, *inputs)

    monkeypatch.setattr(Pretraining, "forward", padded)
    with pytest.raises(AssertionError, match="flops"):
        assert_not_more(step_costs(name), COSTS["steps"][name])


def test_a_needless_copy_is_noticed(monkeypatch: pytest.MonkeyPatch):
    name = next(name for name in step_cases() if name.startswith("albef") and name.endswith("fp32"))
    forward = CrossAttention.forward

    def copying(self, tokens, *inputs):
        return forward(self, Tokens(tokens.values.clone(), tokens.layout), *inputs)

    monkeypatch.setattr(CrossAttention, "forward", copying)
    with pytest.raises(AssertionError, match="bytes_copied"):
        assert_not_more(step_costs(name), COSTS["steps"][name])


def weight_dtypes(module: nn.Module, compute: Callable[[], object]) -> set[torch.dtype]:
    """The types of weights with which linear layers of the module's blocks are called."""
    dtypes: list[torch.dtype] = []
    layers = {x for part in module.modules() if isinstance(part, nn.ModuleList) for x in part.modules()}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: dtypes.append(cast(Tensor, layer.weight).dtype))
        for layer in layers
        if type(layer) is nn.Linear
    ]
    compute()
    for hook in hooks:
        hook.remove()
    return set(dtypes)


def loaded(name: str) -> tuple[LoadedModel, Callable[[], Any]]:
    """A model as commands and the Python API load it, and its fusion of a batch."""
    model, batch = small(name), batch_of(6)
    saved = object.__new__(SavedModel)  # not read
    return LoadedModel(saved, model, torch.device("cpu")), lambda: SYSTEMS[name].methods["fuse"](model, batch)


@pytest.mark.parametrize("name", ["albef", "vilt"])
def test_commands_and_the_python_api_compute_no_padding(name: str):
    model, fuse = loaded(name)
    with model.computing(bf16=False):
        computed = flops(fuse)
    with torch.no_grad(), packing():
        packed = flops(fuse)
    with torch.no_grad():
        padded = flops(fuse)
    assert computed == packed < padded


def test_commands_and_the_python_api_cast_weights_once():
    model, fuse = loaded("albef")

    def compute(bf16: bool) -> None:
        with model.computing(bf16):
            fuse()

    assert weight_dtypes(model.module, lambda: compute(True)) == {torch.bfloat16}
    assert weight_dtypes(model.module, lambda: compute(False)) == {torch.float32}


def test_a_momentum_teacher_has_its_weights_cast_once_a_step():
    step, batch = distilled("albef", "pretraining"), batch_of(6)

    def compute() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            losses_of(step, batch)

    assert weight_dtypes(step.teacher, compute) == {torch.bfloat16}


def test_a_command_keeps_freed_memory_and_a_call_of_main_does_not(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(1))
    assert cli.main(["--help"]) == 0 and not calls
    monkeypatch.setattr(sys, "argv", ["diptych", "--help"])
    assert cli.main() == 0 and calls
