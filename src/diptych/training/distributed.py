"""Devices, processes and precision: activation checkpointing, sharding (FSDP2), torchrun's process group, bf16."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from inspect import isfunction
from itertools import count
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

WIDE = 2048
"""Input channels of a block's widest layer, from which on a CPU computes faster in bf16: oneDNN compiles its kernels for
each new number of tokens, which takes longer than the layers of a narrow model."""

# FSDP and DTensor take 0.6 s to import, sympy among them: functions import them, and only where weights are sharded.


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a module's encoders: outermost members of ModuleLists that have submodules.

    They are the units of activation checkpointing and of sharding.
    """
    for child in module.children():
        container = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        if isinstance(module, nn.ModuleList) and not container and any(True for _ in child.children()):
            yield child
        else:
            yield from blocks(child)


def checkpoint_activations(module: nn.Module) -> None:
    """Makes each block keep only its inputs and recompute its activations in the backward pass.

    Values and gradients stay the same.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    for block in blocks(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard(module: nn.Module, device: torch.device) -> None:
    """Shards parameters, gradients and optimizer state over the ranks; a block is gathered only while it computes.

    Parameters that blocks share, and those outside all blocks, are gathered for the whole pass. Scalars stay unsharded:
    `average_scalars` averages their gradients. Every rank must start from the same weights.

    Source: Zhao et al. 2023 (PyTorch FSDP); torch's `fully_shard`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    scalars = {p for p in module.parameters() if p.dim() == 0}
    units = list(blocks(module))
    owners = Counter(p for unit in units for p in set(unit.parameters()))
    inside = {m for unit in units for m in unit.modules()}
    outside = {p for m in module.modules() if m not in inside for p in m.parameters(recurse=False)}
    separate = [unit for unit in units if all(owners[p] == 1 and p not in outside for p in unit.parameters())]
    # the root is resharded after forward too, so that no parameter stays gathered between passes
    for unit in [*separate, module]:
        methods = _methods(type(unit))  # before `fully_shard`, which changes the class
        sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        sharded.set_force_sum_reduction_for_comms(device.type == "cpu")  # gloo has no averaging reduction
        if unit is not module:
            _gather_in_methods(unit, methods)


def _methods(kind: type[nn.Module]) -> list[str]:
    """The names of the public methods that a module class adds to `nn.Module`, without `forward`."""
    added = [vars(base) for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module]
    names = dict.fromkeys(name for members in added for name, member in members.items() if isfunction(member))
    return [name for name in names if not name.startswith("_") and name not in vars(nn.Module)]


def _gather_in_methods(unit: nn.Module, methods: Iterable[str]) -> None:
    """Makes a sharded unit's `methods` gather its weights as `forward` does: models call parts of a block directly.

    Only the outermost call gathers: a method that is called by another, or by `forward`, has the weights already.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    running = False

    def enter(*_: object) -> None:
        nonlocal running
        running = True

    def leave(*_: object) -> None:
        nonlocal running
        running = False

    def outermost(plain: Callable[..., T], gathering: Callable[..., T]) -> Callable[..., T]:
        def method(*args: Any, **kwargs: Any) -> T:
            if running:
                return plain(*args, **kwargs)
            enter()
            try:
                return gathering(*args, **kwargs)
            finally:
                leave()

        return method

    unit.register_forward_pre_hook(enter)
    unit.register_forward_hook(leave, always_call=True)
    for name in methods:
        plain = getattr(unit, name)
        register_fsdp_forward_method(unit, name)
        setattr(unit, name, outermost(plain, getattr(unit, name)))


def unshard(module: nn.Module) -> None:
    """Gathers all weights on every rank, which may then compute without the others. Undoes `shard`, after training."""
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()


def is_sharded(t: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is sharded over the ranks: a DTensor, which none can be before `shard` has imported the class."""
    tensor = sys.modules.get("torch.distributed.tensor")
    return tensor is not None and isinstance(t, tensor.DTensor)


def full_tensor(t: Tensor) -> Tensor:
    """The unsharded tensor. Where it is sharded, every rank must call this."""
    return t.full_tensor() if is_sharded(t) else t


def distribute_like(example: Tensor, t: Tensor) -> Tensor:
    """`t`, sharded like `example` if that has the same shape; every rank must have all of `t`."""
    if not is_sharded(example) or t.shape != example.shape:
        return t
    from torch.distributed.tensor import distribute_tensor

    # no broadcast: each rank has read the same file
    return distribute_tensor(t, example.device_mesh, example.placements, src_data_rank=None)


def average_scalars(module: nn.Module) -> None:
    """Averages over the ranks the gradients of scalars, which `shard` leaves unsharded."""
    for p in module.parameters():
        if p.dim() == 0 and p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scales gradients, in place, to a total norm of at most `max_norm`; returns the norm before.

    As torch's `clip_grad_norm_`, for sharded and unsharded parameters together.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    kinds = [[p for p in with_grad if is_sharded(p) is sharded] for sharded in (True, False)]
    norms = [
        full_tensor(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind
    ]
    norm = norms[0] if len(norms) == 1 else torch.stack([n.to(norms[0].device) for n in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm.item()


T = TypeVar("T")
_groups = count()  # process groups of this process
_TIMEOUT = timedelta(minutes=10)  # the default hangs far longer when a restart meets stale addresses
# The values of ONEDNN_MAX_CPU_ISA under which oneDNN uses no bf16 instructions (oneDNN's "CPU dispatcher control").
_WITHOUT_BF16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


@dataclass(frozen=True)
class Group:
    """The processes of a distributed run: this process's device and rank, and the number of ranks (`world`)."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each 0-d tensor summed over the ranks, in one all-reduce; float32. Every rank must pass the same names."""
        stacked = torch.stack([v.detach().float().to(self.device) for v in values.values()])
        if self.world > 1:
            dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Blocks until every rank has called it."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, module: nn.Module, parallel: str = "ddp") -> nn.Module:
        """The module, with gradients averaged over the ranks: wrapped in DDP, or sharded in place ("fsdp").

        DDP searches for unused parameters because a rank's part of the batch may lack the inputs of a loss (no masked
        token), and because diagnostics report a parameter that no rank used; DDP would stop the run.
        """
        if self.world == 1:
            return module
        if parallel == "fsdp":
            shard(module, self.device)
            return module
        return DistributedDataParallel(module, find_unused_parameters=True, broadcast_buffers=False)


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" prefers cuda, then mps, then cpu. Raises ValueError if it is unavailable."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); try --device auto") from None
    return device


def uses_bf16(device: torch.device, precision: str, module: nn.Module | None = None) -> bool:
    """Whether `precision` ("fp32", "bf16", "auto") means bf16 on `device`, for this `module` if there is one.

    "auto" is bf16 if the hardware supports it, and on a CPU if the module is wide enough to gain by it, unless the
    environment variable DIPTYCH_BF16 ("on" or "off") overrides that. Raises ValueError if the variable has any other value.
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
    return device.type == "cpu" and _cpu_computes_bf16() and (module is None or _width(module) >= WIDE)


def _width(module: nn.Module) -> int:
    """Input channels of the widest linear layer in the module's blocks."""
    stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max((x.in_features for stack in stacks for x in stack.modules() if isinstance(x, nn.Linear)), default=0)


def _cpu_computes_bf16() -> bool:
    """Whether this CPU has bf16 instructions that oneDNN, torch's backend for matrix products on a CPU, may use.

    Without them bf16 is emulated, four times slower than fp32. ONEDNN_MAX_CPU_ISA (formerly DNNL_MAX_CPU_ISA) limits
    the instructions; as in oneDNN, its case is ignored, and an unknown name limits nothing.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    if limit.upper() in _WITHOUT_BF16 or not torch.backends.mkldnn.is_available():
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_main_rank() -> bool:
    """Whether this process is rank 0 of torchrun's processes, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def processes(device: str = "auto") -> Iterator[Group]:
    """The process group that torchrun started, or this process only. gloo on CPU, nccl on CUDA."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Group(pick_device(device))
        return
    if device.partition(":")[0] in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # first: `pick_device` allocates memory on the device
    own = pick_device(device)
    if own.type == "cuda":
        own = torch.device("cuda", torch.cuda.current_device())
    store, rank, world = next(rendezvous("env://", timeout=_TIMEOUT))
    # a prefix of its own: in one script, as of training and evaluation, a rank would meet addresses of the group before
    store = dist.PrefixStore(f"group {next(_groups)}", store)  # type: ignore[attr-defined]
    backend = "nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    try:
        yield Group(own, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
