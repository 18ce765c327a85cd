"""States of all tokens of a model, before and after fusion, as padded arrays with masks and named spans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from diptych.modules.tokens import FusedTokens, Tokens


@dataclass(frozen=True)
class TokenStates:
    """The state of every token of n samples, float32 on the CPU, zero at padding.

    `spans`: columns of each kind of token, [first, one past the last): {"cls": (0, 1), "patches": (1, 50)}.
    """

    values: Float[Tensor, "n tokens d"]
    mask: Bool[Tensor, "n tokens"]
    spans: dict[str, tuple[int, int]]

    def __getitem__(self, name: str) -> Float[Tensor, "n span d"]:
        """The states of one kind of token. Raises KeyError."""
        if name not in self.spans:
            raise KeyError(f"no tokens called {name!r}; there are {', '.join(self.spans)}")
        return self.values[:, slice(*self.spans[name])]


@dataclass(frozen=True)
class Features:
    """Token states of images and texts, before and after fusion; None where there is no such input or fusion.

    `image`, `text`: before fusion. `fused_image`, `fused_text`: after fusion of each text with its image. `pooled`: the
    vector of each pair that ITM and task heads read.
    """

    image: TokenStates | None = None
    text: TokenStates | None = None
    fused_image: TokenStates | None = None
    fused_text: TokenStates | None = None
    pooled: Float[Tensor, "n d"] | None = None


def _states(tokens: Tokens) -> TokenStates:
    """The states of a batch's tokens, in either layout, on the CPU."""
    mask, names = tokens.mask.cpu(), [span.name for span in tokens.layout.spans]
    bounds = {name: tokens.layout.bounds(i) for i, name in enumerate(names)}
    return TokenStates(tokens.to_padded().float().cpu() * mask[:, :, None], mask, bounds)


def features_of(image: Tokens | None, text: Tokens | None, fused: FusedTokens | None) -> Features:
    """The features of one batch."""
    image_states, text_states = (None if tokens is None else _states(tokens) for tokens in (image, text))
    if fused is None:
        return Features(image_states, text_states)
    return Features(image_states, text_states, _states(fused.image), _states(fused.text), fused.pooled.float().cpu())


def joined(parts: list[Features]) -> Features:
    """The features of all batches; batches of images of other sizes are padded to the longest."""
    states = {
        name: None if (values := [getattr(part, name) for part in parts])[0] is None else _joined_states(values)
        for name in ("image", "text", "fused_image", "fused_text")
    }
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Features(**states, pooled=torch.cat(pooled) if pooled else None)


def placed(features: Features, places: Sequence[int], number: int) -> Features:
    """The features of some of `number` samples at their places; the other samples are padding, their `pooled` NaN."""
    if len(places) == number:
        return features

    def at_places(x: Tensor, fill: float) -> Tensor:
        rows = x.new_full((number, *x.shape[1:]), fill)
        rows[places] = x
        return rows

    def states(part: TokenStates | None) -> TokenStates | None:
        return part and TokenStates(at_places(part.values, 0), at_places(part.mask, False), part.spans)

    image, text = states(features.image), states(features.text)
    pooled = None if features.pooled is None else at_places(features.pooled, torch.nan)
    return Features(image, text, states(features.fused_image), states(features.fused_text), pooled)


def _joined_states(parts: list[TokenStates]) -> TokenStates:
    longest = max(parts, key=lambda part: part.mask.shape[1])
    padding = [longest.mask.shape[1] - part.mask.shape[1] for part in parts]
    values = [F.pad(part.values, (0, 0, 0, n)) for part, n in zip(parts, padding, strict=True)]
    masks = [F.pad(part.mask, (0, n)) for part, n in zip(parts, padding, strict=True)]
    return TokenStates(torch.cat(values), torch.cat(masks), longest.spans)
