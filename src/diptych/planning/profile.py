"""The profile of a run: FLOPs, memory traffic and activations of one training step on a few of its own samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from diptych.batch import Batch
from diptych.config.run import Pretrain
from diptych.data.loader import samples_per_second
from diptych.modules.tokens import packing
from diptych.protocols import ImageEncoder, RegionEncoder, TrainStep, student_of
from diptych.runs.build import build, with_teacher
from diptych.runs.pretrain import examples
from diptych.training.distributed import checkpoint_activations

SHARES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # quantiles of the sample length at which samples are profiled
SAMPLES = len(SHARES)


@dataclass(frozen=True)
class Cost:
    """The cost of a step on a batch.

    Attributes:
        matmul_flops: Of matrix products and attention; a multiply-add is two.
        bytes_moved: Read and written by all other operations.
        activation_bytes: Kept for the backward pass.
    """

    matmul_flops: float
    bytes_moved: float
    activation_bytes: float


@dataclass(frozen=True)
class Profile:
    """The counts of a run in fp32. A step of b samples costs ``fixed + b * per_sample``."""

    parameters: int  # with those of a momentum teacher
    trained: int
    buffers: int  # elements of buffers, such as queues
    text_tokens: float  # per sample
    image_tokens: float  # per sample
    fixed: Cost
    per_sample: Cost
    samples_per_second: float  # that one process of this machine loads, by CPU time


def profile(run: Pretrain) -> Profile:
    """Builds the run's module and makes a step of 4 samples and one of 8, forward and backward.

    Raises the errors of `runs.pretrain.pretrain`.
    """
    data = "scenes:64" if run.data == "scenes" else run.data
    dataset = examples(replace(run, data=data), "train" if data != run.data else run.split, augment=True)
    module = with_teacher(build(run), run).train()
    if run.training.activation_checkpointing:
        checkpoint_activations(module)
    by_length = sorted(range(min(len(dataset), 256)), key=dataset.length)
    chosen = [by_length[int(share * len(by_length))] for share in SHARES]
    loaded = [dataset.load(i, 0, 0) for i in chosen]
    small, large = (dataset.collate(loaded * k, [*range(len(loaded) * k)], 0, 0) for k in (1, 2))
    costs = [_cost(module, batch) for batch in (small, large)]
    each = Cost(*((b - a) / SAMPLES for a, b in zip(_values(costs[0]), _values(costs[1]), strict=True)))
    fixed = Cost(*(max(0.0, a - SAMPLES * e) for a, e in zip(_values(costs[0]), _values(each), strict=True)))
    samples_per_second(dataset, seed=1, samples=16)  # warm-up: the first samples open files and load libraries
    text_tokens, image_tokens = _tokens(student_of(module), small)
    parameters = list(module.parameters())
    return Profile(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(b.numel() for b in module.buffers()),
        text_tokens,
        image_tokens,
        fixed,
        each,
        samples_per_second(dataset, clock=time.process_time),
    )


def _values(cost: Cost) -> tuple[float, float, float]:
    return cost.matmul_flops, cost.bytes_moved, cost.activation_bytes


def _cost(module: nn.Module, batch: Batch) -> Cost:
    step = cast(TrainStep, module)
    weights = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    saved: dict[int, int] = {}  # bytes by address

    def record(t: Tensor) -> Tensor:
        if (address := t.untyped_storage().data_ptr()) not in weights:
            saved[address] = t.untyped_storage().nbytes()
        return t

    with packing(), _products() as products, _Moved() as moved:
        with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
            losses = step(batch, step.num_terms(batch))
            total = torch.stack([weight * losses[name] for name, weight in step.weights.items()]).sum()
            activation_bytes = sum(saved.values())
        total.backward()
    module.zero_grad(set_to_none=True)
    return Cost(products.get_total_flops(), moved.bytes, activation_bytes)


@contextmanager
def _products() -> Iterator[FlopCounterMode]:
    """Counts FLOPs of matrix products and attention, with the CPU's attention kernel, which torch's counter lacks."""
    aten = torch.ops.aten

    def forward(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, q, k, v)

    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        yield counter


class _Moved(TorchDispatchMode):
    """Counts the bytes that are read and written by operations other than matrix products and views."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func._schema.name
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and not any(kind in name for kind in ("mm", "attention", "conv", "detach", "empty")):
            leaves = tree_leaves((args, kwargs, output))
            self.bytes += sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
        return output


@torch.no_grad()
def _tokens(module: nn.Module, batch: Batch) -> tuple[float, float]:
    """Text and image tokens of a sample, means over the batch."""
    model, image = module.get_submodule("model"), batch.regions if batch.image is None else batch.image
    text_tokens = 0.0 if batch.text is None else float(batch.text.mask.sum()) / len(batch)
    if image is None or not isinstance(model, ImageEncoder | RegionEncoder):
        return text_tokens, 0.0
    image_tokens = float(model.encode_image(image).mask.sum()) / len(batch)  # type: ignore[arg-type]
    return text_tokens, image_tokens if math.isfinite(image_tokens) else 0.0
