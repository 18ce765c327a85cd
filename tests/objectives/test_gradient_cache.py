"""Gradient caching: losses and gradients of the whole batch at the memory of a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.models.albef.model import ALBEF
from diptych.models.clip.config import CLIPConfig
from diptych.models.clip.model import CLIP
from diptych.modules.tokens import packing
from diptych.objectives import views
from diptych.objectives.itc import ITCLoss
from diptych.objectives.momentum import MomentumDistillation, Queue
from diptych.objectives.pretraining import Pretraining
from tests.models.systems import albef, clip, vlmo
from tests.models.systems.common import batch_of

SAMPLES = 18


def clip_step(chunk: int | None) -> Pretraining:
    model: Any = clip.SYSTEMS["clip"].small()
    return Pretraining(model, model.pretraining_heads(), [ITCLoss()], grad_cache_size=chunk)


def two_branches(chunk: int | None) -> Pretraining:
    model = vlmo.small()
    return Pretraining(model, model.pretraining_heads(), [ITCLoss(head_names=vlmo.ITC_HEADS)], grad_cache_size=chunk)


def with_teacher(chunk: int | None) -> MomentumDistillation:
    model = albef.small()
    student = Pretraining(model, model.pretraining_heads(), [ITCLoss()], grad_cache_size=chunk)
    return MomentumDistillation(student, Queue(32, model.embed_dim))


def trained(make: Callable[[int | None], Any], chunk: int | None, pack: bool, **how: Any) -> dict[str, Tensor]:
    """Loss and gradients, with fixed weights and random numbers."""
    torch.manual_seed(0)
    step = make(chunk).train()
    getattr(step, "student", step).pack = pack
    torch.manual_seed(1)
    loss = step(batch_of(SAMPLES))["itc"]
    loss.backward()
    return {"": loss.detach()} | {name: p.grad for name, p in step.named_parameters() if p.grad is not None}


@pytest.mark.quick("18-*", "64-*-clip_step")
@pytest.mark.parametrize("make", [clip_step, two_branches, with_teacher])
@pytest.mark.parametrize(("chunk", "pack"), [(1, False), (5, True), (18, False), (64, True)])
def test_losses_and_gradients_equal_those_without_chunks(make: Callable[[int | None], Any], chunk: int, pack: bool):
    whole, parts = trained(make, None, pack), trained(make, chunk, pack)
    assert whole.keys() == parts.keys() and len(whole) > 10
    largest = max(float(x.abs().max()) for x in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(
            parts[name], value, rtol=1e-6, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def dropping(chunk: int | None) -> Pretraining:
    model: ALBEF = albef.small(dropout=0.3)
    return Pretraining(model, model.pretraining_heads(), [ITCLoss()], grad_cache_size=chunk)


def kept(encode: Callable[[slice], tuple[Tensor, ...]], samples: int, size: int) -> tuple[Tensor, ...]:
    """As `in_chunks`, without recomputation."""
    parts = [encode(slice(i, i + size)) for i in range(0, samples, size)]
    return tuple(torch.cat(x) for x in zip(*parts, strict=True))


@pytest.mark.slow
def test_recomputation_repeats_the_dropout_mask(monkeypatch: pytest.MonkeyPatch):
    """Gradients equal those of the same chunks with stored activations."""
    again = trained(dropping, 5, True)
    monkeypatch.setattr(views, "in_chunks", kept)
    once = trained(dropping, 5, True)
    assert again.keys() == once.keys()
    for name, value in once.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-7)
    monkeypatch.undo()
    assert trained(dropping, None, True)[""] != once[""], "dropout was on"


@pytest.mark.slow
def test_saved_activations_do_not_grow_with_encoder_depth():
    def bytes_kept(chunk: int | None, samples: int) -> int:
        sizes: dict[str, Any] = clip.SIZES | {"embed_dim": 8}
        model: Any = CLIP(CLIPConfig(**sizes))
        step, kept = Pretraining(model, model.pretraining_heads(), [ITCLoss()], grad_cache_size=chunk), 0

        def count(x: Tensor) -> Tensor:
            nonlocal kept
            kept += x.nbytes
            return x

        with packing(False), torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            step(batch_of(samples))
        return kept

    whole, chunks = (bytes_kept(chunk, 32) - bytes_kept(chunk, 16) for chunk in (None, 4))
    assert 0 < chunks < whole / 20


@pytest.mark.slow
def test_no_more_than_a_chunk_is_encoded_at_once():
    step = clip_step(4)
    sizes: list[int] = []
    model: Any = step.model
    model.image.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    step(batch_of(SAMPLES))["itc"].backward()
    assert sizes == [4, 4, 4, 4, 2, 2, 4, 4, 4, 4], "the second pass is in reverse order"
