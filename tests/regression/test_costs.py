"""Training steps and generated tokens cost no more than recorded: no lost cache, no padded path, no needless copy."""

from __future__ import annotations

import json

import pytest
import torch

from diptych.modules.attention import CrossAttention, SharedContext
from diptych.modules.tokens import Tokens
from diptych.objectives.pretraining import Pretraining
from tests.generation.test_shared_keys import CONFIGS
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
