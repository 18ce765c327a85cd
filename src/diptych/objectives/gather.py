"""Rows of all ranks: what a loss that compares samples with one another needs where a batch is spread over processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def gathered(rows: Shaped[Tensor, "b *d"]) -> tuple[Shaped[Tensor, "all *d"], int]:
    """Every rank's rows, by rank, and where this rank's own begin. Gradients flow back to the rank that made a row.

    Ranks may hold different numbers of rows. In one process these are the rows themselves.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, mine)
    lengths = [int(count) for count in counts]
    most = max(lengths)
    canvas = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    parts: Any = _Gather.apply(canvas)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]), sum(lengths[: dist.get_rank()])


class _Gather(torch.autograd.Function):
    """all_gather whose backward gives each rank the sum of the gradients that all ranks have for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, ...]:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        stacked = torch.stack(gradients)
        dist.all_reduce(stacked)
        return stacked[dist.get_rank()]
