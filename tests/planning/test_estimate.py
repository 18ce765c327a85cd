"""A plan counts what training does: it scales with the batch, and each setting moves what it should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.cli import main
from diptych.config.run import Objectives, Pretrain, Teacher
from diptych.data.loader import training_loader
from diptych.models.vilt import recipes as vilt
from diptych.planning import estimate as plans
from diptych.planning.accelerators import ACCELERATORS, Accelerator, chosen
from diptych.planning.profile import Cost, Profile, _cost, profile
from diptych.runs.build import build
from diptych.runs.pretrain import examples

SMALL = dict(dim=32, depth=2, num_heads=2, mlp_dim=64)


def tiny(**training) -> Pretrain:
    run = vilt.tiny()
    model = replace(run.model, **SMALL)
    return replace(run, model=model, data="scenes:40", training=replace(run.training, **training))


@pytest.fixture(scope="module")
def found() -> Profile:
    return profile(tiny())


@pytest.mark.slow
def test_a_larger_batch_costs_what_was_foretold(found: Profile):
    run = tiny()
    step = next(training_loader(examples(run, "train", True), batch_size=24, seed=0, start=0, steps=1, workers=0))
    cost = _cost(build(run).train(), step[0].batch)
    assert cost.products == pytest.approx(found.fixed.products + 24 * found.each.products, rel=0.15)
    assert cost.activations == pytest.approx(found.fixed.activations + 24 * found.each.activations, rel=0.15)
    assert cost.moved == pytest.approx(
        found.fixed.moved + 24 * found.each.moved, rel=0.3
    )  # some is padded, to the longest


def test_products_are_those_of_the_formula():
    """Masked words alone: a step is three times the way forth; for patches twice, since pixels need no gradient."""
    run = replace(tiny(), objectives=Objectives(mlm=1.0, mask_rate=0.5))
    found = profile(run)
    d, n, hidden = SMALL["dim"], round(found.words + found.patches), SMALL["mlp_dim"]
    weights = SMALL["depth"] * (4 * d * d + 2 * d * hidden)
    scores = SMALL["depth"] * 2 * n * d
    forth = 2 * n * (weights + scores)
    embedded = 2 * found.patches * 3 * run.model.patch_size**2 * d  # type: ignore[union-attr]
    assert found.each.products == pytest.approx(3 * forth + 2 * embedded, rel=0.1)


@pytest.mark.slow
def test_activations_made_again_are_not_kept_and_cost_a_third_more(found: Profile):
    again = profile(tiny(recompute=True))
    assert again.each.activations < 0.6 * found.each.activations
    assert 1.1 < again.each.products / found.each.products < 1.4


def test_a_teacher_is_held_but_not_trained():
    run = replace(tiny(), objectives=Objectives(mlm=1.0), teacher=Teacher(momentum=0.99))
    found = profile(run)
    assert found.parameters > 1.8 * found.trained


def planned(monkeypatch: pytest.MonkeyPatch, gpus: str, **training) -> plans.Estimate:
    known = Profile(10**9, 10**9, 0, 20, 200, Cost(0, 1e9, 0), Cost(1e12, 1e9, 5e9), 1e6)
    monkeypatch.setattr(plans, "profile", lambda run: known)
    run = tiny()
    return plans.estimate(replace(run, training=replace(run.training, **{"batch_size": 128, **training})), gpus, 0.5)


def test_memory_and_hours_follow_ranks_and_ways_of_dividing(monkeypatch: pytest.MonkeyPatch):
    eight, one = planned(monkeypatch, "8xA100"), planned(monkeypatch, "A100", grad_accum=8)
    assert eight.memory == one.memory and eight.memory["weights"] == 4e9 and eight.memory["AdamW's means"] == 8e9
    assert one.seconds["products"] == pytest.approx(8 * eight.seconds["products"])
    divided = planned(monkeypatch, "8xA100", parallel="fsdp")
    assert divided.memory["weights"] == 4e9 / 8 and divided.seconds["exchange"] > eight.seconds["exchange"]
    assert eight.fits and eight.bound == "products" and not planned(monkeypatch, "A100").fits
    assert planned(monkeypatch, "A100", grad_accum=8).fits
    assert eight.seconds["products"] == pytest.approx(16 * 1e12 / (0.5 * ACCELERATORS["A100"].half))
    assert eight.hours == pytest.approx(eight.step * 1500 / 3600)


def test_what_is_no_accelerator_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]):
    assert chosen("8xa100") == (8, "A100") and chosen("H200") == (1, "H200") and chosen("cpu:2") == (2, "cpu")
    for words, told in (
        (["--gpus", "8xTPU"], "write 8xA100 or cpu:2; there are A100"),
        (["--gpus", "0xA100"], "write 8xA100"),
        (["--gpus", "cpu:none"], "write cpu:2"),
        ([], "--gpus is missing"),
        (["--gpus", "A100", "--utilisation", "half"], "share of the peak, not 'half'"),
        (["--gpus", "A100", "--utilisation", "2"], "above 0 and at most 1"),
        (["--gpus", "7xA100"], "64 does not divide into 7 ranks"),
    ):
        assert main(["estimate", "vilt.tiny", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


@pytest.mark.slow
def test_the_command_tells_all_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    told = Accelerator("cpu, 2 threads", 1e11, 1e11, 8e9, 1e10, 1e10, "told")
    monkeypatch.setattr(plans, "measured", lambda cores: told)
    sizes = [word for name, value in SMALL.items() for word in (f"--model.{name}", str(value))]
    threads = torch.get_num_threads()
    assert main(["estimate", "vilt.tiny", "--gpus", "cpu:2", "--data", "scenes:40", *sizes]) == 0
    assert torch.get_num_threads() == threads
    said = capsys.readouterr().out
    for part in ("tokens of a sample", "FLOP", "AdamW's means", "activations", "hours", "bound by"):
        assert part in said
