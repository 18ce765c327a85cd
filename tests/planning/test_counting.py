"""Operations are counted without computing, and the counts are those of a computed step."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from diptych.batch import Batch
from diptych.config.data import BOXES
from diptych.config.run import Pretrain
from diptych.modules.tokens import packing
from diptych.objectives.definition import any_needs
from diptych.planning.counting import Counter, Placeholders
from diptych.planning.profile import count_step, profile
from diptych.protocols import TrainStep
from diptych.runs.build import build, with_teacher
from diptych.runs.pretrain import examples
from diptych.runs.recipes import recipe, recipes

# with hard negatives and a queue, causal decoding, masked images, two towers, experts, optimal transport, and regions
RECIPES = (
    "albef.small",
    "beit3.small_visual_tokenizer",
    "blip.small",
    "clip.small",
    "coca.small",
    "mae.small",
    "scan.small",
    "vilbert.small",
    "vilt.tiny",
    "vlmo.tiny",
    "vsepp.small",
)
LARGE = Placeholders.SMALL + 1


def batch_of(run: Pretrain, samples: int = 4) -> Batch:
    dataset = examples(replace(run, data="scenes:16"), "train", augment=True)
    return dataset.collate([dataset.load(i, 0, 0) for i in range(samples)], range(samples), 0, 0)


def modules(run: Pretrain) -> tuple[Any, Any, Placeholders]:
    """The run's module with placeholders, and the same in which their values are zero, as they count."""
    placeholders = Placeholders()
    with placeholders:
        counted = with_teacher(build(run), run).train()
    computed = with_teacher(build(run), run).train()
    with torch.no_grad():
        for ours, real in zip(_state(counted), _state(computed), strict=True):
            real.zero_() if placeholders.is_placeholder(ours) else real.copy_(ours)
    return counted, computed, placeholders


def _state(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_counts_equal_those_of_a_computed_step(name: str):
    run = recipe(name)
    batch, (counted, computed, placeholders) = batch_of(run), modules(run)
    assert any(map(placeholders.is_placeholder, counted.parameters()))
    for module, own in ((counted, placeholders), (computed, None)):
        count_step(module, batch, own)  # frozen features are cached
    cost = count_step(counted, batch, placeholders)
    assert cost == count_step(computed, batch)
    assert cost.matmul_flops > 0 and cost.bytes_moved > 0 and cost.activation_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vilt.tiny", "albef.small", "coca.small"])
def test_flops_equal_those_of_torch(name: str):
    """Counted beside `FlopCounterMode`, with a formula for the CPU's attention kernel."""
    run = recipe(name)
    module, batch = with_teacher(build(run), run).train(), batch_of(run)
    step = cast(TrainStep, module)
    aten = torch.ops.aten
    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with packing(), FlopCounterMode(display=False, custom_mapping=kernels) as counter, Counter() as ours:
        losses = step(batch, step.num_terms(batch))
        torch.stack([weight * losses[name] for name, weight in step.weights.items()]).sum().backward()
    assert ours.flops == counter.get_total_flops() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(recipes("Pretrain")))
def test_every_recipe_is_counted(name: str):
    run = recipe(name)
    missing = _input_to_be_given(run)
    if missing:
        pytest.skip(f"{name} needs {missing}, which a user gives")
    counts = profile(run)
    assert counts.per_sample.matmul_flops > 0 and counts.per_sample.activation_bytes > 0 and counts.parameters > 0


def _input_to_be_given(run: Pretrain) -> str:
    """The option of an input that a recipe names no file for: region features, or a trained visual tokenizer."""
    if run.embedders.image not in ("own", "grid", *BOXES):
        return "--embedders.image"
    needs_tokenizer = any_needs(run.objectives, lambda needs: needs.visual_tokenizer)
    return "--visual_tokenizer" if needs_tokenizer and not run.visual_tokenizer else ""


def resident_bytes() -> int:
    """The memory that this process holds now: its peak would hide what it once held more."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_a_placeholder_takes_no_memory():
    before = resident_bytes()
    with Placeholders() as placeholders:
        x = torch.empty(2**17, 2**12)  # 2 GiB
        y = (x @ torch.empty(2**12, 2**12)).softmax(1) + x
    assert resident_bytes() - before < 2**28
    assert y.shape == x.shape and placeholders.is_placeholder(y) and y.stride() == x.stride()


def test_values_that_decide_shapes_are_real():
    with Placeholders() as placeholders:
        values, mask = torch.empty(LARGE, 3), torch.arange(LARGE) < 5
        chosen = values[mask]
        indices = torch.stack([(values[:4] @ torch.ones(3)) + torch.tensor([0.0, 2.0, 1.0, 0.0])]).argmax(1)
        assert values.sum().item() == 0 and not (values[:9, 0] > 0).any()
    assert chosen.shape == (5, 3) and not chosen.any()
    assert indices.tolist() == [1]  # placeholders count as zero, what is added to them as it is
    assert placeholders.is_placeholder(values[:2]) and not placeholders.is_placeholder(mask)


def test_in_place_operations_and_loaded_weights():
    weights = torch.rand(LARGE)
    with Placeholders() as placeholders:
        loaded, added = torch.empty(LARGE), torch.zeros(LARGE)
        loaded.copy_(weights)
        added.add_(torch.empty(LARGE))
        counts = torch.zeros(2, dtype=torch.long)
        counts += torch.empty(2, LARGE).argmax(1)
    assert not placeholders.is_placeholder(loaded) and loaded.equal(weights)
    assert placeholders.is_placeholder(added) and counts.tolist() == [0, 0]


def test_an_invalid_operation_is_an_error():
    with Placeholders(), pytest.raises(RuntimeError, match="mat1 and mat2"):
        torch.matmul(torch.empty(200, 200), torch.empty(300, 300))


@pytest.mark.slow
@pytest.mark.parametrize("command", [("estimate", "albef.pretrain_4m", "--gpus", "8xA100"), ("info", "albef")])
def test_full_size_models_are_counted_in_a_gigabyte_and_without_the_compiler(command: tuple[str, ...]):
    code = (  # not by ru_maxrss, which includes the parent's memory
        "import sys; from diptych.cli import main; status = main(sys.argv[1:]); print(open('/proc/self/status').read()); "
        "print('torch._dynamo' in sys.modules); sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    peak = next(int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("VmHWM"))
    assert peak < 2**20  # KiB
    assert run.stdout.split()[-1] == "False"
