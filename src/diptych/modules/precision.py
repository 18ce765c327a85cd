"""Weights in the precision of autocast, cast once where autocast would cast them at every use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn

NUM_COMPARED = 64  # values of a weight, evenly spaced, that are compared to notice a change of all
_lock = Lock()  # of all objects, as one that has a lock can be neither copied nor pickled


class CastWeights:
    """The weights of a module's transformer blocks in autocast's precision, where they get no gradients.

    Autocast keeps a cast weight for as long as its context, and only if the weight requires a gradient: a frozen
    network's are cast at every use, and a trained model's at every call. Here they are cast once, and again in the next
    context of `used` after they have changed. All values are the same. Not noticed: writing single values through
    `weight.data`.

    Linear layers in an `nn.ModuleList` take part: those of blocks, which are always computed under autocast (heads may
    be computed in fp32). Weights that are divided between ranks do not.
    """

    def __init__(self, module: nn.Module):
        stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        layers = {id(x): x for stack in stacks for x in stack.modules() if type(x) is nn.Linear}
        self._layers = list(layers.values())
        self._casts: dict[tuple[int, str], tuple[nn.Parameter, _State]] = {}  # by the layer's place in the list
        self._own: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._depth = 0  # of contexts, in all threads

    @contextmanager
    def used(self, device_type: str) -> Iterator[None]:
        """Context in which the layers have cast weights, if autocast is enabled for the device; after it, their own.

        Threads may use it at once. Within it the weights must not be read, saved or changed, nor used without autocast.
        """
        if not torch.is_autocast_enabled(device_type):
            yield
            return
        with _lock:
            if not self._depth:
                self._replace(torch.get_autocast_dtype(device_type))
            self._depth += 1
        try:
            yield
        finally:
            with _lock:
                self._depth -= 1
                if not self._depth:
                    self._restore()

    def _replace(self, dtype: torch.dtype) -> None:
        with_gradients = torch.is_grad_enabled()
        own = [
            (i, name, weight)
            for i, layer in enumerate(self._layers)
            for name, weight in layer.named_parameters(recurse=False)
            if type(weight) is nn.Parameter and not (with_gradients and weight.requires_grad)
        ]
        casts = [self._cast(i, name, weight, dtype) for i, name, weight in own]
        self._own = [(self._layers[i], name, weight) for i, name, weight in own]
        for (layer, name, _), cast in zip(self._own, casts, strict=True):
            layer._parameters[name] = cast

    def _restore(self) -> None:
        for layer, name, weight in self._own:
            layer._parameters[name] = weight
        self._own = []

    def _cast(self, layer: int, name: str, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        cast, before = self._casts.get((layer, name), (None, None))
        state = _State.of(weight)
        if cast is None or (cast.dtype, cast.device, cast.shape) != (dtype, weight.device, weight.shape):
            with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
                cast = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
        elif before is None or not before.equals(state):
            cast.copy_(weight.detach())
        self._casts[layer, name] = cast, state
        return cast


@dataclass(frozen=True)
class _State:
    """That by which a change of a weight is noticed.

    torch counts changes in `_version`, but neither those by its fused optimizers nor those of `weight.data`: these show
    in `values`, some of the weight's, or in its `address`.
    """

    version: int
    address: int
    values: Tensor

    @classmethod
    def of(cls, weight: nn.Parameter) -> _State:
        version = -1 if weight.is_inference() else weight._version
        every = max(1, weight.numel() // NUM_COMPARED)
        return cls(version, weight.data_ptr(), weight.detach().flatten()[::every].clone())

    def equals(self, other: _State) -> bool:
        same = (self.version, self.address) == (other.version, other.address)
        return same and torch.equal(self.values, other.values)
