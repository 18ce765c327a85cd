"""Gradient caching (GradCache): contrastive training on a large batch, encoded in chunks."""

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
    """The outputs of `encode` for `samples` rows, computed `size` rows at a time.

    Activations of a chunk are not kept: the backward pass encodes it again, with the same random numbers. So losses and
    gradients are those of the whole batch, at the memory of a chunk and the time of a second forward pass. (Batch norm
    in training uses the statistics of a chunk.)

    Args:
        encode: from a slice of rows to one or more tensors (rows, d).

    Source: GradCache (Gao et al. 2021), section 3.
    """
    parts = []
    for first in range(0, samples, size):
        context = copy_context()  # the recomputation runs outside `packing`, and possibly in another thread
        rows = slice(first, min(first + size, samples))
        parts.append(checkpoint(context.run, encode, rows, use_reentrant=False))
    return tuple(torch.cat(chunks) for chunks in zip(*parts, strict=True))
