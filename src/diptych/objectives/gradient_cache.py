"""A batch encoded a chunk at a time: what a contrast needs of a large batch is small, what encoding it needs is not."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_chunks(
    encode: Callable[[slice], tuple[Tensor, ...]], samples: int, size: int
) -> tuple[Float[Tensor, "b d"], ...]:
    """What `encode` makes of `samples` rows, `size` at a time, of which nothing else is kept: on the way back each chunk is
    encoded again, by the same random numbers, and given the gradient of its rows (GradCache: Gao et al. 2021, section 3).

    So the losses and gradients are those of the whole batch at once, at the memory of a chunk and the time of a second
    forward pass. (Norms over the batch, as of a CNN that is trained, see a chunk.)
    """
    parts = []
    for first in range(0, samples, size):
        context = copy_context()  # the second time is outside `packing`, and may be in another thread
        rows = slice(first, min(first + size, samples))
        parts.append(checkpoint(context.run, encode, rows, use_reentrant=False))
    return tuple(torch.cat(readout) for readout in zip(*parts, strict=True))
