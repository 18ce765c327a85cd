"""Estimates of a run before it starts: memory on each rank, hours, and the bottleneck."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diptych.config.run import Pretrain
from diptych.config.training import Training
from diptych.planning.accelerators import ACCELERATORS, Accelerator, parse_gpus
from diptych.planning.profile import Profile, profile
from diptych.utils.memory import available_memory

USABLE_MEMORY = 0.92  # the share of a device's memory that a run can use
FP32 = 4  # bytes per number
MOMENTS = {"adamw": 8, "sgd": 4}  # bytes of the optimizer's state per parameter: AdamW has two moments, SGD one


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of a run.

    `memory`: bytes on each rank, by content. `seconds`: of a step, by activity. Matrix products and other operations
    run one after the other; communication and data loading overlap them, except on a CPU.
    """

    profile: Profile
    device: Accelerator
    training: Training  # of the run, with its steps if it counts by epochs
    ranks: int
    micro_batch: int  # samples
    bf16: bool  # whether matrix products are computed in bf16
    flops: float  # of a step, over all ranks
    memory: dict[str, float]
    max_micro_batch: int  # the largest micro-batch that fits, in samples
    seconds: dict[str, float]
    step: float  # seconds
    hours: float

    @property
    def bound(self) -> str:
        """The activity that takes the longest: the bottleneck."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def fits(self) -> bool:
        """Whether the run fits into the device's memory."""
        return self.micro_batch <= self.max_micro_batch


def estimate(run: Pretrain, gpus: str, utilisation: float) -> Estimate:
    """The cost of a run on `gpus` (see `parse_gpus`), from the counts of a step.

    `utilisation`: the share of their peak that devices reach in matrix products, in (0, 1]. Raises ValueError for
    invalid arguments, and the errors of `runs.pretrain.pretrain`.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation must be a share of the peak, in (0, 1]: got {utilisation}")
    count, name = parse_gpus(gpus)
    training, ranks = run.training, 1 if name == "cpu" else count
    if training.batch_size % (ranks * training.grad_accum):
        raise ValueError(
            f"batch_size {training.batch_size} is not a multiple of {ranks} ranks x grad_accum {training.grad_accum}; "
            "change one of them"
        )
    counts = profile(run)
    training = training.for_examples(counts.num_examples)
    device = measure_cpu(count) if name == "cpu" else ACCELERATORS[name]
    bf16 = name != "cpu" and training.precision != "fp32"
    micro_batch = training.batch_size // (ranks * training.grad_accum)
    memory, max_micro_batch = _memory(counts, training, device, ranks, micro_batch, bf16)
    cores = count or torch.get_num_threads()
    loaders = cores if name == "cpu" else training.workers
    seconds = _seconds(run, counts, device, ranks, bf16, utilisation, loaders)
    computing = seconds["products"] + seconds["other operations"]
    waiting = max(seconds["data"], seconds["exchange"])
    step = computing + seconds["data"] if name == "cpu" else max(computing, waiting)  # a CPU loads the data too
    fixed, per_sample = counts.fixed.matmul_flops, counts.per_sample.matmul_flops
    flops = ranks * training.grad_accum * fixed + training.batch_size * per_sample
    return Estimate(
        profile=counts,
        device=device,
        training=training,
        ranks=ranks,
        micro_batch=micro_batch,
        bf16=bf16,
        flops=flops,
        memory=memory,
        max_micro_batch=max_micro_batch,
        seconds=seconds,
        step=step,
        hours=step * training.steps / 3600,
    )


def measure_cpu(cores: int) -> Accelerator:
    """This machine's CPU: peak and bandwidth from a large matrix product and a large copy.

    `cores` 0: torch's number of threads. CPU time is measured, so that other processes do not count.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(cores or before)
    a, big = torch.rand(768, 768), torch.rand(8 * 2**20)
    copy = torch.empty_like(big)
    threads = torch.get_num_threads()
    peak = 2 * len(a) ** 3 * threads / _timed(lambda: a @ a)
    bandwidth = 2 * big.nbytes * threads / _timed(lambda: copy.copy_(big))
    name = f"cpu, {threads} threads"
    torch.set_num_threads(before)
    return Accelerator(
        name,
        peak,
        peak,
        available_memory(),
        bandwidth,
        bandwidth,
        "a matrix product and a copy timed here, fp32",
    )


def _timed(work: Callable[[], object]) -> float:
    """The median CPU seconds of `work`, summed over threads."""
    durations = []
    for _ in range(30):
        began = time.process_time()
        work()
        durations.append(time.process_time() - began)
    return sorted(durations)[len(durations) // 2]


def _memory(
    counts: Profile, training: Training, device: Accelerator, ranks: int, micro_batch: int, bf16: bool
) -> tuple[dict[str, float], int]:
    """Bytes on each rank, by content; and the largest micro-batch that fits."""
    share = 1 / ranks if training.parallel == "fsdp" else 1.0
    moments = "AdamW's moments" if training.optimizer.name == "adamw" else "SGD's momentum"
    size = 0.5 if bf16 else 1.0  # under autocast most activations are those of matrix products, kept in bf16
    memory = {
        "weights": FP32 * (counts.parameters * share + counts.buffers),
        "gradients": FP32 * counts.trained * share,
        moments: MOMENTS[training.optimizer.name] * counts.trained * share,
        "weights cast to bf16": 2.0 * counts.parameters * bf16,  # with those of a momentum teacher
        "activations": (counts.fixed.activation_bytes + counts.per_sample.activation_bytes * micro_batch) * size,
    }
    if counts.chunk_size:
        memory["a chunk of gradient caching"] = counts.chunk_bytes * min(counts.chunk_size, micro_batch) * size
    per_sample = counts.per_sample.activation_bytes * size
    free = USABLE_MEMORY * device.memory - sum(memory.values()) + per_sample * micro_batch
    return memory, max(0, int(free / max(1.0, per_sample)))


def _seconds(
    run: Pretrain, counts: Profile, device: Accelerator, ranks: int, bf16: bool, utilisation: float, loaders: int
) -> dict[str, float]:
    """Seconds of a step on each rank, by activity. `loaders`: processes that load data."""
    training = run.training
    samples = training.batch_size / ranks
    size = 0.5 if bf16 else 1.0
    flops = training.grad_accum * counts.fixed.matmul_flops + samples * counts.per_sample.matmul_flops
    moved = (training.grad_accum * counts.fixed.bytes_moved + samples * counts.per_sample.bytes_moved) * size
    # the optimizer reads weights, gradients and moments, and writes weights and moments
    moved += (3 * FP32 + 2 * MOMENTS[training.optimizer.name]) * counts.trained
    # FSDP: two all-gathers and a reduce-scatter; DDP: an all-reduce, which costs two such passes
    passes = 3 if training.parallel == "fsdp" else 2
    exchanged = passes * FP32 * counts.trained * (ranks - 1) / ranks
    return {
        "products": flops / (utilisation * (device.bf16_flops if bf16 else device.fp32_flops)),
        "other operations": moved / device.bandwidth,
        "exchange": exchanged / device.link,
        "data": samples / (counts.samples_per_second * max(1, loaders)),
    }
