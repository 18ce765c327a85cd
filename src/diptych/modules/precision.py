"""Weights in the precision of autocast, cast once where autocast would cast them at every use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import nn

_lock = Lock()  # of all objects, as one that has a lock can be neither copied nor pickled


class CastWeights:
    """The weights of a module's transformer blocks in autocast's precision, where they get no gradients.

    Autocast keeps a cast weight for as long as its context, and only if the weight requires a gradient: a frozen
    network's are cast at every use, and a trained model's at every call. Here they are cast once for each context of
    `used`, to the same memory: neither an assignment to `weight.data` nor torch's fused optimizers leave a trace by
    which a change of a weight could be noticed. All values are the same.

    Linear layers in an `nn.ModuleList` take part: those of blocks, which are always computed under autocast (heads may
    be computed in fp32). Weights that are divided between ranks do not.
    """

    def __init__(self, module: nn.Module):
        stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        layers = {id(x): x for stack in stacks for x in stack.modules() if type(x) is nn.Linear}
        self._layers = list(layers.values())
        self._casts: dict[tuple[int, str], nn.Parameter] = {}  # by the layer's place in the list
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
        cast = self._casts.get((layer, name))
        if cast is not None and (cast.dtype, cast.device, cast.shape) == (dtype, weight.device, weight.shape):
            cast.copy_(weight.detach())
            return cast
        with torch.inference_mode(False):  # what is made in inference mode cannot be written outside of it
            cast = nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
        self._casts[layer, name] = cast
        return cast
