"""What a run will take before it is begun: memory on each rank, hours, and what bounds them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diptych.config.run import Pretrain
from diptych.planning.accelerators import ACCELERATORS, Accelerator, chosen
from diptych.planning.profile import Profile, profile
from diptych.utils import cache

FULL = 0.92  # of an accelerator's memory can be used
FP32, ADAM = 4, 8  # bytes of a number, and of AdamW's two means of a parameter


@dataclass(frozen=True)
class Estimate:
    """`memory`: bytes on each rank, by what they hold. `seconds`: of a step, by what they are spent on; products and the
    rest of computing come one after the other, `bound` is the longest of all.
    """

    counted: Profile
    device: Accelerator
    ranks: int
    micro: int  # samples of a micro-batch
    half: bool  # computed in bf16
    operations: float  # of a step, over all ranks
    memory: dict[str, float]
    most: int  # samples that a micro-batch may have
    seconds: dict[str, float]
    step: float  # seconds
    hours: float

    @property
    def bound(self) -> str:
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def fits(self) -> bool:
        return self.micro <= self.most


def estimate(run: Pretrain, gpus: str, utilisation: float) -> Estimate:
    """`utilisation`: the share of its peak that a device reaches in matrix products. Raises ValueError, and what `pretrain`
    does.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"--utilisation {utilisation}: a share of the peak, above 0 and at most 1")
    count, name = chosen(gpus)
    training, ranks = run.training, 1 if name == "cpu" else count
    if training.batch_size % (ranks * training.grad_accum):
        raise ValueError(
            f"a batch of {training.batch_size} does not divide into {ranks} ranks x {training.grad_accum} micro-batches; change one"
        )
    found, device = profile(run), measured(count) if name == "cpu" else ACCELERATORS[name]
    half = name != "cpu" and training.precision != "fp32"
    micro = training.batch_size // (ranks * training.grad_accum)
    memory, most = _memory(found, device, training.parallel == "fsdp", ranks, micro, half)
    cores = count or torch.get_num_threads()
    makers = cores if name == "cpu" else training.workers
    seconds = _seconds(run, found, device, ranks, half, utilisation, makers)
    computing = seconds["products"] + seconds["other operations"]
    waiting = max(seconds["data"], seconds["exchange"])
    step = computing + seconds["data"] if name == "cpu" else max(computing, waiting)  # a processor makes the data too
    passes = ranks * training.grad_accum * found.fixed.products + training.batch_size * found.each.products
    return Estimate(
        found, device, ranks, micro, half, passes, memory, most, seconds, step, step * training.steps / 3600
    )  # fmt: skip


def measured(cores: int) -> Accelerator:
    """This machine's processor: a product of two large matrices and a large copy, timed. `cores` 0: torch's choice.

    In the process's own time, so that what else runs here does not count.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(cores or before)
    a, big = torch.rand(768, 768), torch.rand(8 * 2**20)
    copy = torch.empty_like(big)
    threads = torch.get_num_threads()
    peak = 2 * len(a) ** 3 * threads / _timed(lambda: a @ a)
    bandwidth = 2 * big.nbytes * threads / _timed(lambda: copy.copy_(big))
    told = f"cpu, {threads} threads"
    torch.set_num_threads(before)
    return Accelerator(
        told, peak, peak, cache.available_memory(), bandwidth, bandwidth, "a matrix product and a copy timed here, fp32"
    )


def _timed(work: Callable[[], object]) -> float:
    """Seconds of all threads together: the median."""
    took = []
    for _ in range(30):
        began = time.process_time()
        work()
        took.append(time.process_time() - began)
    return sorted(took)[len(took) // 2]


def _memory(
    found: Profile, device: Accelerator, divided: bool, ranks: int, micro: int, half: bool
) -> tuple[dict[str, float], int]:
    """By what it holds; and how many samples a micro-batch may have."""
    share = 1 / ranks if divided else 1.0
    width = 0.5 if half else 1.0  # products' activations are kept in bf16, as those are that make up most of them
    memory = {
        "weights": FP32 * (found.parameters * share + found.buffers),
        "gradients": FP32 * found.trained * share,
        "AdamW's means": ADAM * found.trained * share,
        "weights cast to bf16": 2.0 * found.trained * half,
        "activations": (found.fixed.activations + found.each.activations * micro) * width,
    }
    room = FULL * device.memory - sum(memory.values()) + found.each.activations * micro * width
    return memory, max(0, int(room / max(1.0, found.each.activations * width)))


def _seconds(
    run: Pretrain, found: Profile, device: Accelerator, ranks: int, half: bool, utilisation: float, makers: int
) -> dict[str, float]:
    """Of a step, on each rank. `makers`: processes that make its samples ready."""
    training = run.training
    samples = training.batch_size / ranks
    width = 0.5 if half else 1.0
    products = training.grad_accum * found.fixed.products + samples * found.each.products
    moved = (training.grad_accum * found.fixed.moved + samples * found.each.moved) * width
    moved += (3 * FP32 + 2 * ADAM) * found.trained  # AdamW: weight, gradient and means read, weight and means written
    gathers = 3 if training.parallel == "fsdp" else 2  # of parts of what all have; an average is two
    exchanged = gathers * FP32 * found.trained * (ranks - 1) / ranks
    return {
        "products": products / (utilisation * (device.half if half else device.single)),
        "other operations": moved / device.bandwidth,
        "exchange": exchanged / device.link,
        "data": samples / (found.fed * max(1, makers)),
    }
