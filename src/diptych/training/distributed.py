"""The blocks of whatever is trained: the units in which activations are made again, and in which weights are divided.

Weights, gradients and optimizer state divided over the ranks (FSDP2), and whole again where somebody needs them so.

One process or many: what the loop needs to know of the others, from the environment that torchrun sets.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a module's ModuleLists that are made of parts, outermost only: the blocks of its towers."""
    for part in module.children():
        computes = not isinstance(part, (nn.ModuleList, nn.ModuleDict))
        if isinstance(module, nn.ModuleList) and computes and any(True for _ in part.children()):
            yield part
        else:
            yield from blocks(part)


def checkpoint_activations(module: nn.Module) -> None:
    """From now on each block keeps but what it was given, and its activations are made again on the way back
    (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost). Values and gradients stay the same.
    """
    for block in blocks(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard(module: nn.Module, device: torch.device) -> None:
    """Each rank keeps its part of every parameter; a block's are whole only while it computes (Zhao et al. 2023; torch's
    `fully_shard`).

    What blocks share with others, and what is in none, is gathered for a whole pass. Scalars stay whole on each rank:
    their gradients are averaged by `average_scalars`. Every rank must begin with the same weights.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    scalars = {p for p in module.parameters() if p.dim() == 0}
    units = list(blocks(module))
    owners = Counter(p for unit in units for p in set(unit.parameters()))
    inside = {m for unit in units for m in unit.modules()}
    outside = {p for m in module.modules() if m not in inside for p in m.parameters(recurse=False)}
    apart = [unit for unit in units if all(owners[p] == 1 and p not in outside for p in unit.parameters())]
    for unit in [*apart, module]:  # resharded after forward, the root too: between passes parameters are always divided
        divided = fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        divided.set_force_sum_reduction_for_comms(device.type == "cpu")  # gloo does not average


def unshard(module: nn.Module) -> None:
    """Ends `shard`: from now on every rank has all weights, and may compute without the others. It trains no more."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def whole(t: Tensor) -> Tensor:
    """All of a tensor. Where it is divided every rank must ask."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def divided_like(example: Tensor, t: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, where `example`, of its shape, is divided; else the tensor."""
    if not isinstance(example, DTensor) or t.shape != example.shape:
        return t
    # no rank is the source: each has read the same file
    return distribute_tensor(t, example.device_mesh, example.placements, src_data_rank=None)


def average_scalars(module: nn.Module) -> None:
    """The mean over the ranks of what `shard` left whole."""
    for p in module.parameters():
        if p.dim() == 0 and p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def clip(parameters: Iterable[nn.Parameter], most: float) -> float:
    """The norm of the whole gradient, which is scaled down to `most` where it is longer."""
    graded = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in graded if isinstance(p, DTensor) is divided] for divided in (True, False)]
    norms = [whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind]
    norm = norms[0] if len(norms) == 1 else torch.stack([n.to(norms[0].device) for n in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm.item()


T = TypeVar("T")
_TIMEOUT = timedelta(minutes=10)  # without one, a restart on stale addresses hangs far longer
# The values of ONEDNN_MAX_CPU_ISA under which oneDNN uses no bf16 instructions (oneDNN's "CPU dispatcher control").
_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


@dataclass(frozen=True)
class Group:
    """The processes that train together, seen from one of them."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each 0-d value summed over the ranks, in one exchange; float32. Every rank must have the same names."""
        stacked = torch.stack([v.detach().float().to(self.device) for v in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, module: nn.Module, parallel: str = "ddp") -> nn.Module:
        """The module whose backward averages gradients over the ranks; "fsdp": itself, its weights divided among them.

        Under DDP unused parameters are looked for because a rank may lack what another has (no masked word in its part of the
        batch), and because the loss doctor names a parameter that no rank used, where DDP would stop the run.
        """
        if self.world == 1:
            return module
        if parallel == "fsdp":
            shard(module, self.device)
            return module
        return DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" prefers cuda, then mps, then cpu. Raises ValueError where there is none such."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); try --device auto") from None
    return device


def takes_bf16(device: torch.device, precision: str) -> bool:
    """Whether `precision` ("fp32", "bf16", "auto") means bf16 on `device`.

    "auto" is bf16 where the hardware computes in it, unless the environment variable DIPTYCH_BF16 ("on" or "off") decides.
    Raises ValueError where that variable holds anything else.
    """
    if precision != "auto":
        return precision == "bf16"
    forced = os.environ.get("DIPTYCH_BF16", "")
    if forced not in ("", "on", "off"):
        raise ValueError(f"the environment variable DIPTYCH_BF16 is {forced!r}; set it to 'on' or 'off', or unset it")
    if forced:
        return forced == "on"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_computes_bf16()


def _cpu_computes_bf16() -> bool:
    """Whether oneDNN, which makes torch's matrix products on a CPU, may use bf16 instructions that this CPU has.

    Without them bf16 is emulated, four times slower than fp32. ONEDNN_MAX_CPU_ISA (formerly DNNL_MAX_CPU_ISA) limits what
    oneDNN uses; like oneDNN, this ignores its case, and a name that oneDNN does not know limits nothing.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    if limit.upper() in _WITHOUT_BF16 or not torch.backends.mkldnn.is_available():
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def processes(device: str = "auto") -> Iterator[Group]:
    """This process's group: all that torchrun started, or itself alone. gloo on CPU, nccl on CUDA."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group(pick_device(device))
        return
    if device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # first: to try a device takes memory of it
    place = pick_device(device)
    if place.type == "cuda":
        place = torch.device("cuda", torch.cuda.current_device())
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Group(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
