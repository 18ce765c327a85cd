import pytest
import torch
from torch import nn

from diptych.protocols import ChanceLoss
from diptych.training.diagnostics import Diagnostics, Diverged, Finding, merge_findings

FLOORS = {"itm": ChanceLoss(0.693, "matching prior", "captions do not belong to their images")}


def verdicts(values: list[float]) -> list[tuple[int, str]]:
    rows = [{"step": 10 * (i + 1), "itm": v, "samples": 1} for i, v in enumerate(values)]
    return [(f.step, f.verdict) for f in Diagnostics(FLOORS, patience=100).read(rows)]


def test_a_loss_at_chance_is_early_before_patience_and_stuck_after():
    assert verdicts([0.70] * 20) == [(10, "early"), (100, "stuck")]


def test_a_loss_below_chance_is_learning():
    assert verdicts([0.69] * 5 + [0.5] * 20) == [(10, "early"), (60, "learning")]


def test_the_verdict_is_of_the_mean_of_five_rows():
    """One low row among four at chance is noise: the mean of five, 0.6864, is just above 99 % of chance (0.6861)."""
    assert verdicts([0.70] * 4 + [0.632] + [0.70] * 4) == [(10, "early")]
    assert verdicts([0.70] * 4 + [0.630]) == [(10, "early"), (50, "learning")]
    assert verdicts([0.70] * 4 + [0.630] + [0.70] * 5) == [(10, "early"), (50, "learning"), (100, "stuck")]


def test_a_stuck_loss_may_still_move_later():
    assert verdicts([0.69] * 12 + [0.3] * 20)[-1] == (130, "learning")


def test_a_loss_that_stays_above_chance_is_stuck_too():
    assert verdicts([2.0] * 20) == [(100, "stuck")]


def test_a_finding_names_the_likely_cause():
    found = Diagnostics(FLOORS, patience=0).read([{"step": 1, "itm": 0.69}])
    assert "captions do not belong" in str(found[0]) and "0.6930" in str(found[0])


def test_the_first_loss_that_is_not_finite_is_named():
    diagnostics = Diagnostics(FLOORS, 10)
    diagnostics.check_finite(3, {"mlm": 1.0, "itm": 2.0})
    with pytest.raises(Diverged, match="step 4: itm: is inf"):
        diagnostics.check_finite(3, {"mlm": 1.0, "itm": float("inf")})


def test_dead_and_unused_parameters_are_named_once_and_frozen_ones_not():
    module = nn.ModuleDict({"used": nn.Linear(2, 1), "dead": nn.Linear(2, 1), "spare": nn.Linear(1, 1, bias=False)})
    module["frozen"] = nn.Linear(1, 1).requires_grad_(False)
    x = torch.ones(1, 2)
    (module["used"](x) + 0 * module["dead"](x)).sum().backward()
    diagnostics = Diagnostics({}, 10)
    diagnostics.check_gradients(0, module)
    diagnostics.check_gradients(1, module)
    expected = {("dead.weight", "zero gradient"), ("dead.bias", "zero gradient"), ("spare.weight", "unused")}
    assert {(f.subject, f.verdict) for f in diagnostics.findings} == expected
    assert len(diagnostics.findings) == 3


def test_many_parameters_with_one_cause_are_one_line():
    unused = [Finding(1, f"experts.{i}", "unused", "got no gradient") for i in range(5)]
    others = [Finding(1, "itm", "early", "at chance level"), Finding(1, "dead", "zero gradient", "is zero")]
    first, *rest = merge_findings([unused[0], others[0], *unused[1:], others[1]])
    assert first.subject == "5 parameters (experts.0, experts.1, experts.2, …)" and first.verdict == "unused"
    assert rest == others
    assert merge_findings([Finding(1, "itm", "early", "a"), Finding(1, "mlm", "early", "b")])[1].subject == "mlm"
