"""The frozen networks, made when they are first needed and once for a process; what they say is kept in one store."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from diptych.inputs import Text
from diptych.layers.given import States
from diptych.models.cnn import FrozenCNN
from diptych.models.hypercolumns import Hypercolumns
from diptych.models.minilm import DEPTH, WIDTH, FrozenText
from diptych.store import Remembered, Store, usual_folder

STAGES = (0, 3, 6)  # of MiniLM: its words, what half of its layers say of them, and all


@cache
def store() -> Store:
    return Store(usual_folder())


@cache
def remembered() -> Remembered:
    """What the CNN saw."""
    return Remembered(store=store())


@cache
def frozen_cnn() -> FrozenCNN:
    return FrozenCNN(store=store())


@cache
def frozen_text(depth: int = DEPTH, stages: tuple[int, ...] = (), onward: bool = False) -> FrozenText:
    return FrozenText(depth, store=store(), stages=stages, onward=onward)


@cache
def hypercolumns() -> Hypercolumns:
    return Hypercolumns(frozen_cnn())


def cnn_maps(pixels: Tensor) -> Tensor:
    return frozen_cnn().maps(pixels)


def read_states(text: Text, once: bool = False) -> Tensor:
    """MiniLM's word states, each of which has seen the whole text."""
    return frozen_text()(text, once)


def read_onward(text: Text, once: bool = False) -> Tensor:
    """The states of several stages, side by side, where no word has seen a later one."""
    return frozen_text(stages=STAGES, onward=True)(text, once)


def word_states(text: Text, once: bool = False) -> Tensor:
    """MiniLM's vector of each piece by itself."""
    table = frozen_text(0).words.word.weight
    return table.to(text.ids.device)[text.ids]


READ: dict[str, tuple[States, int]] = {
    "minilm": (read_states, WIDTH),
    "minilm_onward": (read_onward, WIDTH * len(STAGES)),
    "minilm_words": (word_states, WIDTH),
}
"""What reads a text for `embed.text`, and how many numbers it says of each piece."""
