"""Weights in the precision of autocast, cast once where autocast would cast them at every use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class CastWeights:
    """The weights of a module's transformer blocks in autocast's precision, where they get no gradients.

    Autocast keeps a cast weight for as long as its context, and only if the weight requires a gradient: a frozen
    network's are cast at every use, and a trained model's at every call. Here they are cast once, and again after they
    have changed. All values are the same.

    Linear layers in an `nn.ModuleList` take part: those of blocks, which are always computed under autocast (heads may
    be computed in fp32). Weights that are divided between ranks do not.
    """

    def __init__(self, module: nn.Module):
        stacks = [part for part in module.modules() if isinstance(part, nn.ModuleList)]
        layers = {id(x): x for stack in stacks for x in stack.modules() if type(x) is nn.Linear}
        self._layers = list(layers.values())
        self._casts: dict[tuple[int, str], tuple[nn.Parameter, int, nn.Parameter]] = {}
        self._in_use = False

    @contextmanager
    def used(self, device_type: str) -> Iterator[None]:
        """Context in which the layers have cast weights, if autocast is enabled for the device; after it, their own.

        Their weights must not be read, saved or changed within it. A context within another changes nothing.
        """
        if self._in_use or not torch.is_autocast_enabled(device_type):
            yield
            return
        dtype, with_gradients = torch.get_autocast_dtype(device_type), torch.is_grad_enabled()
        own = [
            (layer, name, weight)
            for layer in self._layers
            for name, weight in layer.named_parameters(recurse=False)
            if type(weight) is nn.Parameter and not (with_gradients and weight.requires_grad)
        ]
        casts = [self._cast(layer, name, weight, dtype) for layer, name, weight in own]
        self._in_use = True
        try:
            for (layer, name, _), cast in zip(own, casts, strict=True):
                layer._parameters[name] = cast
            yield
        finally:
            for layer, name, weight in own:
                layer._parameters[name] = weight
            self._in_use = False

    def _cast(self, layer: nn.Module, name: str, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        of, version, cast = self._casts.get((id(layer), name), (None, -1, None))
        if cast is None or of is not weight or cast.dtype != dtype or cast.device != weight.device:
            cast = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        elif version != weight._version:
            cast.copy_(weight.detach())
        self._casts[id(layer), name] = weight, weight._version, cast
        return cast
