"""The profile of a run: FLOPs, memory traffic and activations of one training step on a few of its own samples."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from diptych.batch import Batch
from diptych.config.run import Pretrain
from diptych.data.examples import Examples
from diptych.data.loader import samples_per_second
from diptych.modules.tokens import packing
from diptych.objectives.definition import any_needs
from diptych.planning.counting import Counter, Placeholders
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
    num_examples: int = 0  # of the training split; 0: not counted
    chunk_size: int = 0  # samples that gradient caching encodes at a time; 0: no gradient caching
    chunk_bytes: float = 0.0  # activations per sample of a chunk, which the backward pass computes again


def profile(run: Pretrain) -> Profile:
    """Counts the cost of a training step on 4 samples and of one on 8, forward and backward, without computing them.

    See `planning.counting.Placeholders`: weights and activations take neither time nor memory; masks, ids and lengths
    are those of the run's data, of which a few samples are loaded. Features of frozen networks count as cached.

    Raises the errors of `runs.pretrain.pretrain`.
    """
    data = "scenes:64" if run.data == "scenes" else run.data
    dataset = examples(replace(run, data=data), "train" if data != run.data else run.split, augment=True)
    by_length = sorted(range(min(len(dataset), 256)), key=dataset.length)
    chosen = [by_length[int(share * len(by_length))] for share in SHARES]
    loaded = [dataset.load(i, 0, 0) for i in chosen]
    small, large = (dataset.collate(loaded * k, [*range(len(loaded) * k)], 0, 0) for k in (1, 2))
    placeholders = Placeholders()
    with _no_garbage_collection():
        with placeholders:
            module = with_teacher(build(run), run).train()
            text_tokens, image_tokens = _tokens(student_of(module), small)
        if run.training.activation_checkpointing:
            checkpoint_activations(module)
        if _has_frozen_networks(run):
            count_step(module, large, placeholders)  # loads them, and caches their features: counted in no step
        costs = [count_step(module, batch, placeholders) for batch in (small, large)]
        chunk_size = getattr(student_of(module), "grad_cache_size", None) or 0
        chunk_bytes = _bytes_without_gradient_caching(module, small, placeholders) / SAMPLES if chunk_size else 0.0
    each = Cost(*((b - a) / SAMPLES for a, b in zip(_values(costs[0]), _values(costs[1]), strict=True)))
    fixed = Cost(*(max(0.0, a - SAMPLES * e) for a, e in zip(_values(costs[0]), _values(each), strict=True)))
    parameters = list(module.parameters())
    return Profile(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(b.numel() for b in module.buffers()),
        text_tokens,
        image_tokens,
        fixed,
        each,
        _loading_rate(dataset),
        _num_examples(run, dataset if data == run.data else None),
        chunk_size,
        chunk_bytes,
    )


def _num_examples(run: Pretrain, dataset: Examples | None) -> int:
    """Examples of the training split; 0 if it is not open, and no setting counts by epochs: opening it may take long.

    `dataset`: the split, if it is open.
    """
    if dataset is None and run.training.needs_epochs:
        dataset = examples(run, run.split, augment=True)
    return 0 if dataset is None else len(dataset)


def _has_frozen_networks(run: Pretrain) -> bool:
    return (run.embedders.image, run.embedders.text) != ("own", "own") or any_needs(
        run.objectives, lambda needs: needs.frozen_cnn or needs.visual_tokenizer
    )


def _values(cost: Cost) -> tuple[float, float, float]:
    return cost.matmul_flops, cost.bytes_moved, cost.activation_bytes


def count_step(module: nn.Module, batch: Batch, placeholders: Placeholders | None = None) -> Cost:
    """The cost of one training step of a `TrainStep` on a batch: forward and backward, with packed tokens.

    `placeholders`: those that the module was built with; without them the step is computed.
    """
    step = cast(TrainStep, module)
    weights = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    saved: dict[int, tuple[StorageWeakRef, int]] = {}  # bytes by address; some are freed before the forward pass ends

    def record(t: Tensor) -> Tensor:
        if (address := t.untyped_storage().data_ptr()) not in weights:
            saved[address] = StorageWeakRef(t.untyped_storage()), t.untyped_storage().nbytes()
        return t

    with packing(), Counter(placeholders) as counter:
        with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
            losses = step(batch, step.num_terms(batch))
            total = torch.stack([weight * losses[name] for name, weight in step.weights.items()]).sum()
            activation_bytes = sum(size for storage, size in saved.values() if not storage.expired())
        total.backward()
    module.zero_grad(set_to_none=True)
    return Cost(counter.flops, counter.bytes_moved, activation_bytes)


def _bytes_without_gradient_caching(module: nn.Module, batch: Batch, placeholders: Placeholders) -> float:
    """The activations of a step that encodes the whole batch at once."""
    student: Any = student_of(module)
    size, student.grad_cache_size = student.grad_cache_size, None
    try:
        return count_step(module, batch, placeholders).activation_bytes
    finally:
        student.grad_cache_size = size


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Context without Python's search for reference cycles, which takes a fifth of the time of counting."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _loading_rate(dataset: Examples) -> float:
    """Samples per second of CPU time that this process loads, from 8 to 64 samples: about a quarter of a second."""
    warm_up = samples_per_second(dataset, seed=1, samples=8, clock=time.process_time)  # opens files, loads libraries
    samples = min(64, max(8, round(warm_up / 4)))
    return samples_per_second(dataset, samples=samples, clock=time.process_time)


@torch.no_grad()
def _tokens(module: nn.Module, batch: Batch) -> tuple[float, float]:
    """Text and image tokens of a sample, means over the batch."""
    model, image = module.get_submodule("model"), batch.regions if batch.image is None else batch.image
    text_tokens = 0.0 if batch.text is None else float(batch.text.mask.sum()) / len(batch)
    if image is None or not isinstance(model, ImageEncoder | RegionEncoder):
        return text_tokens, 0.0
    image_tokens = float(model.encode_image(image).mask.sum()) / len(batch)  # type: ignore[arg-type]
    return text_tokens, image_tokens if math.isfinite(image_tokens) else 0.0
