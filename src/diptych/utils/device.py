"""Tensors that go to a device together."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor


class DeviceMixin:
    """A frozen dataclass of tensors, which can be sent to a device."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        """The same with every tensor in it, however deep, on `device`."""

        def move(x: Any) -> Any:
            if isinstance(x, (Tensor, DeviceMixin)):
                return x.to(device, non_blocking=non_blocking)
            if isinstance(x, dict):
                return {k: move(v) for k, v in x.items()}
            return x

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var]
