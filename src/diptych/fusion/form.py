"""What every fusion is, so that one can be exchanged for another by assignment."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from diptych.tokens import Pair, Tokens


@runtime_checkable
class Fusion(Protocol):
    """A part in which text and image tokens of one width meet."""

    def __call__(self, text: Tokens, image: Tokens) -> Pair:
        """Both, after they have met, each in its own layout; and the summary that heads of the pair read."""
        ...

    def alone(self, tokens: Tokens) -> Tokens:
        """One modality through the same parts."""
        ...
