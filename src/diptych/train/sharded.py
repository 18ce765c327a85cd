"""Weights, gradients and optimizer state divided over the ranks (FSDP2), and whole again where somebody needs them so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from diptych.train.blocks import blocks


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


def unite(module: nn.Module) -> None:
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
