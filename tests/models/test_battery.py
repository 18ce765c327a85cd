"""One battery for all systems: each test below runs on every entry of the files in systems/."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diptych.batch import Batch, Image
from diptych.inference.folder import load_weights
from diptych.modules.precision import CastWeights
from diptych.modules.tokens import Tokens, packing
from diptych.objectives.pretraining import Pretraining
from diptych.protocols import PooledFusionEncoder, TrainStep, pooled_pair
from diptych.training.checkpoint import save_weights
from diptych.training.distributed import blocks, checkpoint_activations, full_tensor, shard
from tests.models.systems.common import VOCABULARY, Job, System, batch_of, draw, padded, rows

SYSTEMS: dict[str, System] = {
    name: system
    for file in sorted((Path(__file__).parent / "systems").glob("*.py"))
    if file.stem != "common"
    for name, system in import_module(f"tests.models.systems.{file.stem}").SYSTEMS.items()
}
FIRST = list({re.split("[ ,]", name)[0]: name for name in reversed(SYSTEMS)}.values())  # of each paper


def cases(parts: Callable[[System], Mapping], n: int) -> list:
    """(name, part) of every system; all are slow except the `n`-th part of each paper's first entry."""
    return [
        pytest.param(name, part, marks=() if name in FIRST and part == list(parts(system))[n] else pytest.mark.slow)
        for name, system in SYSTEMS.items()
        for part in parts(system)
    ]


JOBS = cases(lambda system: system.jobs, 0)
METHODS = cases(lambda system: system.methods, -1)  # quick: the last one, the end of a forward pass


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return amplified(SYSTEMS[name].small()).eval()


def step_of(name: str, job: str, seed: int = 0) -> tuple[nn.Module, Job]:
    torch.manual_seed(seed)
    made = SYSTEMS[name].jobs[job]
    return made.step(SYSTEMS[name].small()), made


@torch.no_grad()
def amplified(module: nn.Module) -> nn.Module:
    """Weights far enough from zero that attention is not uniform, so that an omission or a mix-up changes outputs."""
    for weight in module.parameters():
        weight.mul_(5) if weight.dim() > 1 else weight.add_(0.1 * torch.randn(weight.shape, generator=draw(0)))
    return module


def losses_of(step: nn.Module, batch: Batch) -> dict[str, Tensor]:
    train_step: TrainStep = step  # type: ignore[assignment]
    return train_step(batch, train_step.num_terms(batch))


def total_of(step: nn.Module, losses: Mapping[str, Tensor]) -> Tensor:
    weights: dict[str, float] = step.weights  # type: ignore[assignment]
    return torch.stack([weight * losses[name] for name, weight in weights.items()]).sum()


def gradients(step: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(step.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), grads, strict=True)}


def outputs(name: str, method: str, model: nn.Module, batch: Batch, packed: bool = False) -> list[list[Tensor]]:
    """The outputs of a method, sample by sample, without padding."""
    with packing(packed), torch.no_grad():
        results = SYSTEMS[name].methods[method](model, batch)
    return [list(x.pack().values.split(x.layout.lengths)) if isinstance(x, Tokens) else list(x) for x in results]


def assert_same(a: list[list[Tensor]], b: list[list[Tensor]]) -> None:
    for x, y in zip(a, b, strict=True):
        for ours, theirs in zip(x, y, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def doubles(name: str) -> Iterator[None]:
    """Float64 throughout, since float32 rounding differs between CPUs; the visual tokenizer compares its codes in
    float32.
    """
    torch.set_default_dtype(torch.float32 if name == "tokenizer" else torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# -- the battery ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "job"), JOBS)
@torch.no_grad()
def test_loss_at_initialisation_is_chance(name: str, job: str):
    """Within 4 %, in the mean of eight initialisations: an std of 0.02 gives logits near zero; the rest is their
    spread.
    """
    per_seed, chance = [], SYSTEMS[name].jobs[job].chance
    for seed in range(8):
        step, _ = step_of(name, job, seed)
        per_seed.append(losses_of(step.eval(), batch_of(32)))
    assert per_seed[0].keys() >= chance.keys()
    for loss, expected in chance.items():
        mean = sum(losses[loss].item() for losses in per_seed) / len(per_seed)
        assert mean == pytest.approx(expected, rel=0.04), f"{loss} starts at {mean:.4f}"


@pytest.mark.parametrize(("name", "method"), METHODS)
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_padding_changes_nothing(name: str, method: str, packed: bool, doubles: None):
    """Neither the amount of padding nor the values in it change the outputs."""
    model, batch = small(name), batch_of(6)
    before = outputs(name, method, model, batch, packed)
    more = padded(batch)
    assert more.image is not None and more.text is not None
    inside = (more.image.pixels == 0).all(1, keepdim=True)
    dirty = replace(
        more,
        image=Image(torch.where(inside, 5.0, more.image.pixels), more.image.sizes),
        text=replace(more.text, ids=torch.where(more.text.mask, more.text.ids, VOCABULARY - 1)),
    )
    assert_same(outputs(name, method, model, more, packed), before)
    assert_same(outputs(name, method, model, dirty, packed), before)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_forward_is_the_composition_of_the_methods(name: str, packed: bool):
    model, batch, forward = small(name), batch_of(4), SYSTEMS[name].forward
    with packing(packed):
        called, composed = forward.call(model, batch), forward.composed(model, batch)
    assert len(called) == len(composed) > 0
    for a, b in zip(called, composed, strict=True):
        a, b = (x.pack().values if isinstance(x, Tokens) else x for x in (a, b))
        assert torch.equal(a, b) and a.isfinite().all() and a.numel() > 0


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_packed_outputs_are_the_padded_ones(name: str, method: str, doubles: None):
    model, batch = small(name), batch_of(6)
    assert_same(outputs(name, method, model, batch, packed=True), outputs(name, method, model, batch))


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_packed_losses_and_gradients_are_the_padded_ones(name: str, job: str):
    step = amplified(step_of(name, job)[0]).eval()
    results = []
    for packed in (False, True):
        if isinstance(step, Pretraining):
            step.pack = packed
        with packing(packed):
            losses = losses_of(step, batch_of(6))
        results.append((losses, gradients(step, total_of(step, losses))))
    for a, b in zip(*results, strict=True):
        assert a.keys() == b.keys()
        largest = max(x.abs().max().item() for x in a.values())
        for key in a:
            torch.testing.assert_close(
                a[key], b[key], rtol=1e-4, atol=1e-5 * largest, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.parametrize(("name", "method"), METHODS)
@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_permuting_the_batch_permutes_the_outputs(name: str, method: str, packed: bool, doubles: None):
    model, batch = small(name), batch_of(6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    before = outputs(name, method, model, batch, packed)
    assert_same(outputs(name, method, model, rows(batch, order), packed), [[x[i] for i in order] for x in before])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, list(system.methods)[-1])
        for name, system in SYSTEMS.items()
        if system.methods
        and (not name.startswith("vlmo") or "added" in name)  # relative positions have one bias a head
    ],
)
@pytest.mark.slow
def test_regrouped_heads_have_the_same_weights_and_other_outputs(name: str, method: str, doubles: None):
    """Weights are the same tensors; with the trained head counts again, outputs are bit for bit as before."""
    model, batch = small(name), batch_of(3)
    layers: list[Any] = [layer for layer in model.modules() if isinstance(getattr(layer, "num_heads", None), int)]
    counts = [layer.num_heads for layer in layers]
    if not any(count > 1 for count in counts):
        pytest.skip("no attention of several heads")
    before = outputs(name, method, model, batch)
    for layer in layers:
        layer.num_heads = 1
    regrouped = outputs(name, method, model, batch)
    for layer, count in zip(layers, counts, strict=True):
        layer.num_heads = count
    again = outputs(name, method, model, batch)
    flat, other, last = ([x for part in parts for x in part] for parts in (before, regrouped, again))
    assert all(torch.equal(x, y) for x, y in zip(flat, last, strict=True))
    assert any(not torch.allclose(x, y) for x, y in zip(flat, other, strict=True))


@pytest.mark.parametrize(
    ("name", "job"), [case for case in JOBS if SYSTEMS[str(case.values[0])].jobs[str(case.values[1])].apart]
)
def test_losses_and_gradients_of_a_batch_are_the_sums_of_its_parts(name: str, job: str):
    """Ranks and micro-batches: losses and gradients of parts, with the counts of the whole batch, sum to those of the
    batch.
    """
    step = amplified(step_of(name, job)[0]).eval()
    train_step: TrainStep = step  # type: ignore[assignment]
    batch = batch_of(6)
    counts = train_step.num_terms(batch)
    whole = train_step(batch, counts)
    parts = [rows(batch, torch.arange(0, 2)), rows(batch, torch.arange(2, 6))]
    part_losses = [train_step(part, counts) for part in parts]
    for key, count in counts.items():
        torch.testing.assert_close(sum(train_step.num_terms(part)[key] for part in parts), count)
    for key, loss in whole.items():
        torch.testing.assert_close(part_losses[0][key] + part_losses[1][key], loss, rtol=1e-4, atol=1e-6)
    wanted = gradients(step, total_of(step, whole))
    got = gradients(step, total_of(step, part_losses[0]) + total_of(step, part_losses[1]))
    largest = max(g.abs().max().item() for g in wanted.values())
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize(("name", "job"), JOBS)
def test_every_parameter_gets_a_gradient_or_is_exempt(name: str, job: str):
    step, made = step_of(name, job)
    amplified(step)
    largest_of = by_row(step, gradients(step, total_of(step, losses_of(step, batch_of()))))
    largest = max(largest_of.values())
    without_gradient = {key for key, gradient in largest_of.items() if gradient <= 1e-5 * largest}
    excused = {key for key in without_gradient for pattern in made.exempt if re.search(pattern, key)}
    assert without_gradient == excused, "parameters without a gradient"
    for pattern in made.exempt:
        assert any(re.search(pattern, key) for key in without_gradient), (
            f"{pattern} gets a gradient now: remove it from `exempt`"
        )


def by_row(step: nn.Module, grads: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest gradient of each parameter, and of each row of an embedding table."""
    tables = {f"{name}.weight" for name, part in step.named_modules() if isinstance(part, nn.Embedding)}
    whole = {name: g.abs().max().item() for name, g in grads.items() if name not in tables}
    return whole | {f"{name}[{row}]": g.abs().max().item() for name in tables for row, g in enumerate(grads[name])}


def memory_and_results(
    step: nn.Module, change: Callable[[nn.Module], None]
) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """Bytes saved for the backward pass, losses and gradients of a step after a `change` to it."""
    change(amplified(step).eval())
    saved: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        losses = losses_of(step, batch_of(6))
        total = total_of(step, losses)
    total.backward()
    grads = {name: torch.zeros(()) if p.grad is None else full_tensor(p.grad) for name, p in step.named_parameters()}
    return sum(saved.values()), losses, grads


def assert_same_results(got: tuple, wanted: tuple) -> None:
    for a, b in zip(got[1:], wanted[1:], strict=True):
        assert a.keys() == b.keys()
        largest = max(x.abs().max().item() for x in b.values())
        for key in a:
            torch.testing.assert_close(
                a[key], b[key], rtol=1e-5, atol=1e-6 * largest, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.quick("vilt-*", "vlmo-*", "clip-*")
@pytest.mark.parametrize(("name", "job"), JOBS)
def test_activation_checkpointing_changes_nothing_but_memory(name: str, job: str):
    before, after = (
        memory_and_results(step_of(name, job)[0], change) for change in (lambda _: None, checkpoint_activations)
    )
    assert_same_results(after, before)
    if any(True for _ in blocks(step_of(name, job)[0])):
        assert after[0] < 0.9 * before[0]


@pytest.fixture(scope="module")
def group_of_one():
    store = dist.HashStore()  # type: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.quick("vilt-*", "vlmo-*", "clip-*")
@pytest.mark.parametrize(("name", "job"), JOBS)
@pytest.mark.slow
def test_sharding_changes_no_losses_or_gradients(name: str, job: str, group_of_one: None):
    """FSDP2 on one rank: the weights of every block are gathered when it runs. Two ranks: tests/training."""
    before = memory_and_results(step_of(name, job)[0], lambda _: None)
    assert_same_results(
        memory_and_results(step_of(name, job)[0], lambda step: shard(step, torch.device("cpu"))), before
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "job"), JOBS)
def test_overfits_eight_samples(name: str, job: str):
    step, made = step_of(name, job)
    batch = batch_of(8)
    optimizer = torch.optim.AdamW(step.train().parameters(), lr=5e-3, weight_decay=0.0)
    limits = {loss: 0.3 * prior for loss, prior in {**made.chance, **made.prior}.items()}
    assert limits
    above: dict[str, float] = {}
    for _ in range(made.steps):
        losses = losses_of(step, batch)
        above = {loss: losses[loss].item() for loss, limit in limits.items() if losses[loss].item() >= limit}
        if not above:
            break
        optimizer.zero_grad()
        total_of(step, losses).backward()
        optimizer.step()
    assert not above, f"after {made.steps} steps"


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_saved_and_loaded_weights_give_the_same_outputs(name: str, method: str, tmp_path: Path):
    model, batch = small(name), batch_of(4)
    save_weights(tmp_path, model)
    torch.manual_seed(1)
    other = SYSTEMS[name].small().eval()
    with pytest.raises(AssertionError):
        assert_same(outputs(name, method, other, batch), outputs(name, method, model, batch))
    load_weights(other, tmp_path)
    for a, b in zip(outputs(name, method, other, batch), outputs(name, method, model, batch), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.quick(*FIRST)
@pytest.mark.parametrize("name", SYSTEMS)
def test_full_size_is_built_without_memory(name: str):
    with torch.device("meta"):
        model = SYSTEMS[name].full()
    assert sum(p.numel() for p in model.parameters()) > SYSTEMS[name].least
    assert {p.device.type for p in model.parameters()} == {"meta"}
    small, full = ({re.sub(r"\.\d+\.", ".N.", key) for key in m.state_dict()} for m in (SYSTEMS[name].small(), model))
    assert small <= full, "the small model has parts that the full one lacks"


@pytest.mark.quick("vilt-*", "vlmo-*", "albef-*")
@pytest.mark.parametrize(("name", "job"), JOBS)
@pytest.mark.slow
def test_bfloat16_stays_near_float32(name: str, job: str):
    step, _ = step_of(name, job)
    exact = losses_of(step.eval(), batch_of(6))
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses_of(step, batch_of(6))
    for key in step.weights:  # type: ignore[union-attr]
        assert rough[key].dtype == torch.float32, f"{key} is summed in {rough[key].dtype}"
        assert rough[key].item() == pytest.approx(exact[key].item(), rel=0.02, abs=0.02)


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_weights_that_are_cast_once_give_what_autocast_gives(name: str, method: str):
    model, batch = small(name), batch_of(6)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = outputs(name, method, model, batch, packed=True)
        with torch.no_grad(), CastWeights(model).used("cpu"):
            got = outputs(name, method, model, batch, packed=True)
    assert all(torch.equal(x, y) for a, b in zip(got, wanted, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if "fuse" in SYSTEMS[name].methods])
@pytest.mark.parametrize("packed", [False, True])
def test_the_pooled_pair_is_that_of_fusion_and_computes_no_more(
    name: str, packed: bool, monkeypatch: pytest.MonkeyPatch
):
    encoder: Any = small(name)
    calls, fuse = [], encoder.fuse
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "fuse", lambda *inputs: (calls.append(inputs), fuse(*inputs))[1])
        outputs(name, "fuse", encoder, batch_of(6), packed)
    text, image = calls[0]
    with packing(packed), torch.no_grad():
        with FlopCounterMode(display=False) as whole:
            wanted = encoder.fuse(text, image).pooled
        with FlopCounterMode(display=False) as short:
            got = pooled_pair(encoder, text, image)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert short.get_total_flops() <= whole.get_total_flops()
    if isinstance(encoder, PooledFusionEncoder):
        assert short.get_total_flops() < 0.8 * whole.get_total_flops(), "the last of two or three blocks is cut"
