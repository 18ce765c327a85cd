"""What a decoder remembers between two tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.layout import Layout


class Cache:
    """Keys and values of every self-attention that has read so far, so that each token is computed once.

    Works on padded tokens: decoding proceeds in columns. A column that is padding stays so for ever.
    """

    def __init__(self) -> None:
        self._seen: dict[nn.Module, tuple[Tensor, Tensor, Layout]] = {}

    @property
    def length(self) -> int:
        """Columns of text read so far."""
        for _, _, layout in self._seen.values():
            return sum(span.length for span in layout.spans if span.modality == "text")
        return 0

    def extended(
        self, attention: nn.Module, key: Float[Tensor, "*k d"], value: Float[Tensor, "*k d"], layout: Layout
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d"], Layout]:
        """What `attention` has seen with the newest behind it, which it will remember."""
        if key.dim() != 3:
            raise ValueError("a cache works on padded tokens: decode outside `packing`")
        if attention in self._seen:
            keys, values, before = self._seen[attention]
            key, value = torch.cat([keys, key], 1), torch.cat([values, value], 1)
            layout = Layout(torch.cat([before.real, layout.real], 1), before.spans + layout.spans)
        self._seen[attention] = key, value, layout
        return self._seen[attention]

    def forget(self, columns: int) -> None:
        """Unsees the last columns, which must be of one span: a [MASK] that only held a place."""
        for attention, (key, value, layout) in self._seen.items():
            *before, last = layout.spans
            spans = (*before, replace(last, length=last.length - columns))
            self._seen[attention] = key[:, :-columns], value[:, :-columns], Layout(layout.real[:, :-columns], spans)

    def take(self, samples: Int[Tensor, " k"]) -> None:
        """Goes on with these samples, in this order: beams that were kept, some perhaps twice."""
        self._seen = {
            attention: (key[samples], value[samples], Layout(layout.real[samples], layout.spans))
            for attention, (key, value, layout) in self._seen.items()
        }
