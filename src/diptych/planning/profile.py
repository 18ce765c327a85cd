"""One training step of a run, on a few of its own samples, with everything counted: what a plan is made of."""

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

SHARES = (1 / 8, 3 / 8, 5 / 8, 7 / 8)  # of the samples by length: which are counted
SAMPLES = len(SHARES)


@dataclass(frozen=True)
class Cost:
    """Of a step on a batch. `products`: floating-point operations of matrix products and attention, a multiply-add two;
    `moved`: bytes that all other operations read and write; `kept`: bytes of activations held for the way back.
    """

    products: float
    moved: float
    activations: float


@dataclass(frozen=True)
class Profile:
    """What was counted of a run in fp32. A step of b samples costs ``fixed + b * each``."""

    parameters: int  # a teacher's among them
    trained: int
    buffers: int  # numbers that are no parameters: queues
    words: float  # tokens of text and of image in a sample
    patches: float
    fixed: Cost
    each: Cost
    fed: float  # samples/s that one process of this machine makes ready: of its own time, whatever else runs here


def profile(run: Pretrain) -> Profile:
    """Builds the run's module and makes one step of 4 samples and one of 8, forth and back. Raises what `pretrain` does."""
    asked = replace(run, data="scenes:64" if run.data == "scenes" else run.data)
    food = examples(asked, "train" if asked.data != run.data else run.split, augment=True)
    module = with_teacher(build(run), run).train()
    if run.training.activation_checkpointing:
        checkpoint_activations(module)
    by_length = sorted(range(min(len(food), 256)), key=food.length)
    chosen = [by_length[int(share * len(by_length))] for share in SHARES]
    loaded = [food.load(i, 0, 0) for i in chosen]
    small, large = (food.collate(loaded * k, [*range(len(loaded) * k)], 0, 0) for k in (1, 2))
    costs = [_cost(module, batch) for batch in (small, large)]
    each = Cost(*((b - a) / SAMPLES for a, b in zip(_values(costs[0]), _values(costs[1]), strict=True)))
    fixed = Cost(*(max(0.0, a - SAMPLES * e) for a, e in zip(_values(costs[0]), _values(each), strict=True)))
    samples_per_second(food, seed=1, samples=16)  # the first ones open files and load libraries
    words, patches = _tokens(student_of(module), small)
    parameters = list(module.parameters())
    return Profile(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(b.numel() for b in module.buffers()),
        words,
        patches,
        fixed,
        each,
        samples_per_second(food, clock=time.process_time),
    )


def _values(cost: Cost) -> tuple[float, float, float]:
    return cost.products, cost.moved, cost.activations


def _cost(module: nn.Module, batch: Batch) -> Cost:
    step = cast(TrainStep, module)
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if (place := t.untyped_storage().data_ptr()) not in own:
            kept[place] = t.untyped_storage().nbytes()
        return t

    with packing(), _products() as products, _Moved() as moved:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            losses = step(batch, step.num_terms(batch))
            total = torch.stack([weight * losses[name] for name, weight in step.weights.items()]).sum()
            held = sum(kept.values())
        total.backward()
    module.zero_grad(set_to_none=True)
    return Cost(products.get_total_flops(), moved.bytes, held)


@contextmanager
def _products() -> Iterator[FlopCounterMode]:
    """Counts matrix products and attention, the CPU's own attention kernel too, which torch's counter does not know."""
    aten = torch.ops.aten

    def forth(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    def back(gradient: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_backward_flop_count(gradient, q, k, v)

    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: forth,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: back,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        yield counter


class _Moved(TorchDispatchMode):
    """Counts the bytes that operations other than products and views read and write."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        found = func(*args, **given)
        name = func._schema.name
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and not any(kind in name for kind in ("mm", "attention", "conv", "detach", "empty")):
            leaves = tree_leaves((args, given, found))
            self.bytes += sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))
        return found


@torch.no_grad()
def _tokens(module: nn.Module, batch: Batch) -> tuple[float, float]:
    """Tokens of text and of image in a sample, as the model is given them."""
    model, shown = module.get_submodule("model"), batch.regions if batch.image is None else batch.image
    words = 0.0 if batch.text is None else float(batch.text.mask.sum()) / len(batch)
    if shown is None or not isinstance(model, ImageEncoder | RegionEncoder):
        return words, 0.0
    patches = float(model.encode_image(shown).mask.sum()) / len(batch)  # type: ignore[arg-type]
    return words, patches if math.isfinite(patches) else 0.0
