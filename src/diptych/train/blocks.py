"""The blocks of whatever is trained: the units in which activations are made again, and in which weights are divided."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of a module's ModuleLists that are made of parts, outermost only: the blocks of its towers."""
    for part in module.children():
        computes = not isinstance(part, (nn.ModuleList, nn.ModuleDict))
        if isinstance(module, nn.ModuleList) and computes and any(True for _ in part.children()):
            yield part
        else:
            yield from blocks(part)


def recompute(module: nn.Module) -> None:
    """From now on each block keeps but what it was given, and its activations are made again on the way back
    (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost). Values and gradients stay the same.
    """
    for block in blocks(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
