"""A mixin to move a dataclass of tensors to a device."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor


class DeviceMixin:
    """Adds `to` to a frozen dataclass of tensors."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        """A copy with every tensor, also nested ones, on `device`."""

        def move(x: Any) -> Any:
            if isinstance(x, (Tensor, DeviceMixin)):
                return x.to(device, non_blocking=non_blocking)
            if isinstance(x, dict):
                return {k: move(v) for k, v in x.items()}
            return x

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var]
