"""How often layers compute: the rows that pass through them, and the floating-point operations of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@contextmanager
def rows_computed(*layers: nn.Module) -> Iterator[list[int]]:
    """The number of vectors that each layer is applied to within the context, in the order of `layers`."""
    rows = [0] * len(layers)

    def hook(i: int) -> Callable[..., None]:
        def count(_: nn.Module, arguments: tuple[Tensor, ...], __: Any) -> None:
            rows[i] += arguments[0].shape[:-1].numel()

        return count

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def flops(call: Callable[[], object]) -> int:
    """The floating-point operations of matrix products and attention in a call."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # a CPU's fused kernel is not counted
        call()
    return counter.get_total_flops()
