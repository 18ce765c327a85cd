"""From another encoder's word states to vectors of one's own width, in the place of a table of word vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diptych.inputs import Text
from diptych.layers.given import Dropping, States


class GivenWords(nn.Module):
    """What another encoder says of each piece, projected linearly: it can stand where a model looks up its words
    (``model.text.word = GivenWords(512, source)``) and adds what else it knows of them, as GivenText can where it embeds.

    `source` that is no Module is frozen and not saved; its states are `features` wide. `dropout`: the share of them that is
    dropped while training. `pad`: the id of padding, which is not read. A model that guesses the next word must be given a
    source that does not read ahead. One that reads what stands before a piece must be told of it where a model with a cache
    is given the newest pieces alone: `behind`.
    """

    def __init__(self, width: int, source: States, features: int = 384, pad: int = 0, dropout: float = 0.0):
        super().__init__()
        self.source, self.pad = source, pad
        self.project = Dropping(features, width, dropout)
        self._before: Tensor | None = None

    @contextmanager
    def behind(self, before: Int[Tensor, "b m"]) -> Iterator[None]:
        """Within it, what is read stands behind these pieces, in a text that is still being written."""
        self._before = before
        try:
            yield
        finally:
            self._before = None

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        if self._before is None:
            states = self.source(Text(ids, ids != self.pad))
        else:
            whole = torch.cat([self._before, ids], 1)
            states = self.source(Text(whole, whole != self.pad), True)[:, self._before.shape[1] :]
        return self.project(states.to(self.project.weight))
