"""Estimates equal what training does: they scale with the batch, and each setting has its effect."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diptych.cli import main
from diptych.config.objectives import MLM, Objectives
from diptych.config.run import Pretrain, Teacher
from diptych.data.loader import training_loader
from diptych.models.vilt import recipes as vilt
from diptych.modules import packed_attention
from diptych.planning import estimate as estimates
from diptych.planning.accelerators import ACCELERATORS, Accelerator, parse_gpus
from diptych.planning.profile import Cost, Profile, count_step, profile
from diptych.runs.build import build
from diptych.runs.pretrain import examples
from diptych.runs.recipes import recipe

SMALL = dict(dim=32, depth=2, num_heads=2, mlp_dim=64)


def tiny(**training) -> Pretrain:
    run = vilt.tiny()
    model = replace(run.model, **SMALL)
    return replace(run, model=model, data="scenes:40", training=replace(run.training, **training))


@pytest.fixture(scope="module")
def small() -> Profile:
    return profile(tiny())


@pytest.mark.slow
def test_the_profile_predicts_the_cost_of_a_larger_batch(small: Profile):
    run = tiny()
    step = next(training_loader(examples(run, "train", True), batch_size=24, seed=0, start=0, steps=1, workers=0))
    cost = count_step(build(run).train(), step[0].batch)
    assert cost.matmul_flops == pytest.approx(small.fixed.matmul_flops + 24 * small.per_sample.matmul_flops, rel=0.15)
    expected = small.fixed.activation_bytes + 24 * small.per_sample.activation_bytes
    assert cost.activation_bytes == pytest.approx(expected, rel=0.15)
    expected = small.fixed.bytes_moved + 24 * small.per_sample.bytes_moved
    assert cost.bytes_moved == pytest.approx(expected, rel=0.3)  # some tokens are padding


@pytest.mark.slow
def test_matmul_flops_equal_the_formula(monkeypatch: pytest.MonkeyPatch):
    """With MLM only, a step costs three forward passes; for the patch embedding two, since pixels need no gradient."""
    monkeypatch.setattr(packed_attention, "ADDED_CELLS", 0)  # no padding within groups of samples
    run = replace(tiny(), objectives=Objectives(mlm=MLM(rate=0.5)))
    measured = profile(run)
    d, n, hidden = SMALL["dim"], round(measured.text_tokens + measured.image_tokens), SMALL["mlp_dim"]
    weights = SMALL["depth"] * (4 * d * d + 2 * d * hidden)
    scores = SMALL["depth"] * 2 * n * d
    forward = 2 * n * (weights + scores)
    embedded = 2 * measured.image_tokens * 3 * run.model.patch_size**2 * d  # type: ignore[union-attr]
    assert measured.per_sample.matmul_flops == pytest.approx(3 * forward + 2 * embedded, rel=0.1)


@pytest.mark.slow
def test_activation_checkpointing_saves_memory_and_costs_a_third_more(small: Profile):
    again = profile(tiny(activation_checkpointing=True))
    assert again.per_sample.activation_bytes < 0.6 * small.per_sample.activation_bytes
    assert 1.1 < again.per_sample.matmul_flops / small.per_sample.matmul_flops < 1.4


@pytest.mark.slow
def test_a_momentum_teacher_has_parameters_that_are_not_trained():
    run = replace(tiny(), objectives=Objectives(mlm=MLM()), teacher=Teacher(momentum=0.99))
    measured = profile(run)
    assert measured.parameters > 1.8 * measured.trained


def estimated(monkeypatch: pytest.MonkeyPatch, gpus: str, **training) -> estimates.Estimate:
    measured = Profile(10**9, 10**9, 0, 20, 200, Cost(0, 1e9, 0), Cost(1e12, 1e9, 5e9), 1e6)
    monkeypatch.setattr(estimates, "profile", lambda run: measured)
    run = tiny()
    return estimates.estimate(
        replace(run, training=replace(run.training, **{"batch_size": 128, **training})), gpus, 0.5
    )


def test_memory_and_hours_follow_ranks_and_sharding(monkeypatch: pytest.MonkeyPatch):
    eight, one = estimated(monkeypatch, "8xA100"), estimated(monkeypatch, "A100", grad_accum=8)
    assert eight.memory == one.memory and eight.memory["weights"] == 4e9 and eight.memory["AdamW's moments"] == 8e9
    assert one.seconds["products"] == pytest.approx(8 * eight.seconds["products"])
    divided = estimated(monkeypatch, "8xA100", parallel="fsdp")
    assert divided.memory["weights"] == 4e9 / 8 and divided.seconds["exchange"] > eight.seconds["exchange"]
    assert eight.fits and eight.bound == "products" and not estimated(monkeypatch, "A100").fits
    assert estimated(monkeypatch, "A100", grad_accum=8).fits
    assert eight.seconds["products"] == pytest.approx(16 * 1e12 / (0.5 * ACCELERATORS["A100"].bf16_flops))
    assert eight.hours == pytest.approx(eight.step * 1500 / 3600)


def test_invalid_gpus_are_one_line_errors(capsys: pytest.CaptureFixture[str]):
    assert (
        parse_gpus("8xa100") == (8, "A100") and parse_gpus("H200") == (1, "H200") and parse_gpus("cpu:2") == (2, "cpu")
    )
    for words, message in (
        (["--gpus", "8xTPU"], "write 8xA100 or cpu:2; known kinds are A100"),
        (["--gpus", "0xA100"], "write 8xA100"),
        (["--gpus", "cpu:none"], "write cpu:2"),
        ([], "--gpus is missing"),
        (["--gpus", "A100", "--utilisation", "half"], "--utilisation must be a number in (0, 1]: got 'half'"),
        (["--gpus", "A100", "--utilisation", "2"], "in (0, 1]: got 2.0"),
        (["--gpus", "7xA100"], "batch_size 64 is not a multiple of 7 ranks"),
    ):
        assert main(["estimate", "vilt.tiny", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.slow
def test_the_command_prints_all_estimates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    cpu = Accelerator("cpu, 2 threads", 1e11, 1e11, 8e9, 1e10, 1e10, "measured")
    monkeypatch.setattr(estimates, "measure_cpu", lambda cores: cpu)
    sizes = [word for name, value in SMALL.items() for word in (f"--model.{name}", str(value))]
    threads = torch.get_num_threads()
    assert main(["estimate", "vilt.tiny", "--gpus", "cpu:2", "--data", "scenes:40", *sizes]) == 0
    assert torch.get_num_threads() == threads
    output = capsys.readouterr().out
    for part in ("tokens of a sample", "FLOP", "AdamW's moments", "activations", "hours", "bottleneck"):
        assert part in output


@pytest.mark.slow
def test_gradient_caching_needs_the_memory_of_a_chunk():
    def memory(size: int) -> dict[str, float]:
        run = recipe("clip.base")
        objectives = replace(run.objectives, itc=replace(run.objectives.itc, grad_cache_size=size))
        return estimates.estimate(replace(run, objectives=objectives), "8xA100", 0.4).memory

    whole, large, small = memory(0), memory(1024), memory(256)
    chunk = "a chunk of gradient caching"
    assert chunk not in whole
    assert large[chunk] == pytest.approx(4 * small[chunk])
    assert large["activations"] + large[chunk] == pytest.approx(whole["activations"] / 4, rel=0.05), "of 4096 samples"
